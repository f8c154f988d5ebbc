"""A budget for hostile files: whatever is under 10 MB is refused by name, or read, in seconds and under a gigabyte."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.check.baseline_file import read_baseline
from ssmdiag.check.configuration import read_configuration
from ssmdiag.checkpoint.budget import parse_json, parse_toml, read_text
from ssmdiag.checkpoint.formats.pickled_settings import settings_of
from ssmdiag.checkpoint.names import clean_names, layer_numbers
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.compare.run_order import expand_run, numbers_in_names
from ssmdiag.errors import (
    BaselineError,
    CheckpointError,
    ConfigurationError,
    MapFileError,
    PartialModelError,
    SsmdiagError,
)
from ssmdiag.families.mapfile import read_map
from ssmdiag.retrain.sources import directory_source
from ssmdiag.retrain.tasks import TaskSettings, find_task
from tests.checkpoint.hostile_files import DEEP, HOSTILE, LARGE, MAMBA, Write, sound

MOST_SECONDS, MOST_MB = 5.0, 1024

# --- every hostile file, in a process that may be lost ---------------------------------------------

RUN = r"""
import json, os, re, resource, signal, sys, tempfile, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import torch
torch.set_num_threads(1)
from ssmdiag import diagnose, read_checkpoint
from ssmdiag.errors import SsmdiagError
from tests.checkpoint.hostile_files import HOSTILE, LARGE

status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

def peak():
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024

def examine(path):
    try:
        checkpoint = read_checkpoint(path)
        checkpoint.optimizer_groups
        diagnose(checkpoint)
    except SsmdiagError as error:
        return str(error)
    return ""

for name, write in {**HOSTILE, **LARGE}.items():
    if name not in sys.argv[2:]:
        continue
    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as folder:
        path = write(Path(folder))
        files = [*Path(folder).iterdir()]
        size, names = sum(file.stat().st_size for file in files), [file.name for file in files]
        print(json.dumps({"case": name}), flush=True)
        reset.write_text("5")  # forget the peak so far
        before, start = peak(), time.process_time()
        said = examine(path)
        figures = {"seconds": time.process_time() - start, "mb": peak() - before}
        print(json.dumps({"case": name, "said": said, "names": names, "size": size, **figures}))
"""


def examine(names: list[str], folder: Path) -> dict[str, dict[str, object]]:
    """Return what became of each case, read and diagnosed one after another in a process of limited memory."""
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *names],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, f"{lines[-1:]} ended with {result.returncode}: {result.stderr[-3000:]}"
    return {line["case"]: line for line in lines if "said" in line}


def require_budget(name: str, figures: Mapping[str, object], seconds: float) -> None:
    assert figures["size"] < 10_500_000, name
    assert figures["seconds"] < seconds, (name, figures)
    assert figures["mb"] < MOST_MB, (name, figures)
    said = str(figures["said"])
    assert len(said) < 4000, name
    assert not said or any(part in said for part in figures["names"]), (name, said)


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")


@pytest.mark.slow
@linux
def test_small_hostile_files_are_refused_by_name_or_read_at_once(tmp_path: Path) -> None:
    done = examine(list(HOSTILE), tmp_path)
    assert done.keys() == HOSTILE.keys()
    for name, figures in done.items():
        require_budget(name, figures, MOST_SECONDS)


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_ten_hostile_megabytes_are_refused_by_name_or_read_in_seconds(name: str, tmp_path: Path) -> None:
    require_budget(name, examine([name], tmp_path)[name], MOST_SECONDS)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        pytest.param(
            "a_deep_tuple_as_the_key_of_a_storage", "a storage with an impossible name", marks=pytest.mark.slow
        ),
        ("a_step_of_five_thousand_digits", "whole number of 2,077 bytes"),
        ("a_frame_longer_than_the_file", "its pickle ends early"),
        ("old_format_view_beyond_its_storage", "reaches outside its storage"),
        ("bytes_copied_over_and_over", "copies too many elements"),
        ("members_over_one_another", "its members overlap"),
        ("two_members_of_one_name", "two of its members have one name"),
        ("an_encrypted_member", "is encrypted"),
        ("a_pickle_that_announces_gigabytes", "that unpack to 4,000"),
        ("a_stored_member_that_announces_gigabytes", "announces 4,100,000,000 bytes it does not have"),
        ("a_header_that_is_no_python", "broken .npz"),
        ("an_array_of_negative_shape", "impossible shape"),
        ("more_tensors_than_bytes", "1,152,921,504,606,846,976 tensors"),
        ("a_string_of_2_to_the_60", "ends after 32 bytes"),
        ("a_packed_tensor_larger_than_the_file", "impossible shape"),
        ("a_header_nested_a_hundred_thousand_deep", "nested too deep"),
        ("a_tensor_twice", "a name occurs in it twice"),
        ("a_name_of_two_million_brackets", "2,000,000 characters"),
        ("a_shape_of_2_to_the_62", "more values than any memory"),
        ("index of too many files", "at most 10,000 shards"),
        ("index of 5,000 digits", "a whole number of 5,000 digits"),
    ],
)
def test_a_refusal_says_what_is_wrong(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(HOSTILE[name](tmp_path))
    assert says in str(caught.value)
    assert caught.value.expected or caught.value.advice


# --- what is no file, or too large, in every place that a file is read ------------------------------


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30)


NO_FILES: dict[str, Callable[[Path], None]] = {
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
    "a directory": lambda path: path.mkdir(),
    "a gigabyte": sparse,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "empty": lambda path: path.touch(),
    "not UTF-8": lambda path: path.write_bytes(b"\xff\xfe"),
}  # fmt: skip
every_no_file = pytest.mark.parametrize("kind", NO_FILES)
READERS: dict[str, tuple[str, Callable[[Path], object], type[SsmdiagError]]] = {
    "safetensors": ("m.safetensors", read_checkpoint, CheckpointError),
    "torch": ("m.pt", read_checkpoint, CheckpointError),
    "npz": ("m.npz", read_checkpoint, CheckpointError),
    "GGUF": ("m.gguf", read_checkpoint, CheckpointError),
    "index": ("model.safetensors.index.json", read_checkpoint, CheckpointError),
    "baseline": ("baseline.json", read_baseline, BaselineError),
    "map": ("map.toml", read_map, MapFileError),
    "settings": ("ssmdiag.toml", lambda path: read_configuration(path.parent, path), ConfigurationError),
    "data": ("data.npz", lambda path: find_task("arrays").make(TaskSettings(path=path)), ConfigurationError),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("reader", "kind"),
    # Settings may be empty.
    [(reader, kind) for reader in READERS for kind in NO_FILES if (reader, kind) != ("settings", "empty")],
)
def test_what_is_no_file_of_its_kind_is_refused_by_name(reader: str, kind: str, tmp_path: Path) -> None:
    name, read, error = READERS[reader]
    NO_FILES[kind](tmp_path / name)
    with pytest.raises(error) as caught:
        read(tmp_path / name)
    assert name in str(caught.value) or (kind == "a directory" and tmp_path.name in str(caught.value))


@pytest.mark.one_in(7)
@every_no_file
@pytest.mark.parametrize("name", ["config.json", "trainer_state.json"])
def test_settings_beside_the_weights_that_are_no_file_are_left_aside(name: str, kind: str, tmp_path: Path) -> None:
    path = sound(tmp_path)
    NO_FILES[kind](tmp_path / name)
    result = diagnose(path)
    assert len(result.layers) == 1
    assert any("config.json cannot be read" in problem for problem in result.problems) == (name == "config.json")


@every_no_file
@pytest.mark.parametrize("name", ["optimizer.pt", "training_args.bin"])
def test_a_trainers_files_that_are_no_files_are_left_aside(name: str, kind: str, tmp_path: Path) -> None:
    sound(tmp_path)
    NO_FILES[kind](tmp_path / name)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.optimizer_groups == ()
    if name == "optimizer.pt":
        assert "optimizer.pt" in checkpoint.optimizer_notes[0]


@pytest.mark.parametrize(
    "case",
    ["members_over_one_another", "a_header_that_is_no_python", "a_header_of_brackets", "an_array_of_negative_shape"],
)
def test_data_to_train_on_have_the_same_budget(case: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"m\.npz") as caught:
        find_task("arrays").make(TaskSettings(path=HOSTILE[case](tmp_path)))
    assert len(str(caught.value)) < 1000


@every_no_file
def test_a_directory_of_transformers_with_settings_that_are_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    sound(tmp_path)
    NO_FILES[kind](tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        directory_source(tmp_path)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path: Path) -> None:
    path = sound(tmp_path)
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"seq_len": 7}')
    assert read_checkpoint(path).config == {"seq_len": 7}
    (tmp_path / "ssmdiag.toml").write_bytes(b"\xef\xbb\xbfcontext-length = 7")
    assert read_configuration(tmp_path).context_length == 7


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "content",
    [
        "context-length = " + "9" * 400, "context-length = " + "9" * 5000, "context-length = ²", '"\\ud800" = 1',
        "x = " + "[" * 50_000, "x = " + "{a=" * 50_000, "a." * 200_000 + "b = 1", "[" + "a." * 200_000 + "b]",
        "x" * 400_000 + " = 1",
    ],
    ids=lambda content: content[:18],
)  # fmt: skip
@pytest.mark.parametrize("reader", ["settings", "map"])
def test_strange_toml_is_refused_in_one_sentence(reader: str, content: str, tmp_path: Path) -> None:
    name, read, error = READERS[reader]
    (tmp_path / name).write_text(content)
    with pytest.raises(error) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "finding",
    ['{"code": ' + "[" * 5000, '{"count": ' + "9" * 5000 + "}", '{"of": "' + "x" * 100_000 + '"}', "{}{}{}", "1e999"],
    ids=lambda finding: finding[:12],
)
def test_a_strange_baseline_is_refused_in_one_sentence(finding: str, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"schema_version": 1, "tolerance": 0.1, "findings": [' + finding + "]}")
    with pytest.raises(BaselineError) as caught:
        read_baseline(tmp_path / "b.json")
    assert "b.json" in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- values that are not there --------------------------------------------------------------------


def write_with_values(path: Path) -> Path:
    state = {name: torch.ones(shape) for name, shape in {**MAMBA, "zz": (300, 100)}.items()}
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    elif path.suffix == ".gguf":
        from tests.checkpoint.formats.llama_cpp import write_gguf

        write_gguf(path, state, "mamba")
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix == ".pt")
    return path


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.bin", "m.npz", "m.gguf"])
@pytest.mark.parametrize("change", ["cut", "emptied", "removed", "written again"])
def test_values_of_a_file_that_changed_since_it_was_opened_are_its_own_or_an_error(
    name: str, change: str, tmp_path: Path
) -> None:
    """Of a mapped file that was cut the process would end here, by SIGBUS."""
    path = write_with_values(tmp_path / name)
    checkpoint = read_checkpoint(path)
    content = path.read_bytes()
    if change == "removed":
        path.unlink()
    elif change == "written again":
        path.with_suffix(".new").write_bytes(bytes(len(content)))
        path.with_suffix(".new").replace(path)
    else:
        os.truncate(path, len(content) // 2 if change == "cut" else 0)
    errors = 0
    for stored in checkpoint.values():
        try:
            assert stored.load().equal(torch.ones(stored.shape))
        except CheckpointError as error:
            assert name in str(error)  # noqa: PT017
            errors += 1
    stays_open = name in ("m.pt", "m.npz")  # an archive: the file as it was
    assert bool(errors) == (change in ("cut", "emptied") or not stays_open)


def test_a_tensor_expanded_beyond_its_storage_costs_its_layer_alone(tmp_path: Path) -> None:
    state = {
        f"layers.{i}.{name.partition('.0.')[2]}": torch.zeros(shape) for i in (0, 1) for name, shape in MAMBA.items()
    }
    state["layers.0.mixer.A_log"] = torch.zeros(1).expand(8, 10**8)
    torch.save(state, tmp_path / "m.pt")
    assert (tmp_path / "m.pt").stat().st_size < 10_000
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    assert checkpoint["layers.0.mixer.A_log"].shape == (8, 10**8)
    with pytest.raises(CheckpointError, match="800,000,000 values expanded from 1"):
        checkpoint["layers.0.mixer.A_log"].load()
    assert [layer.name for layer in diagnose(checkpoint).layers] == ["layers.1.mixer"]


def test_a_small_expanded_tensor_is_read(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(50, 60)}, tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.pt")["w"].load().equal(torch.ones(50, 60))


# --- names, numbers, directories --------------------------------------------------------------------


def test_names_that_become_one_are_told_apart_in_linear_time() -> None:
    stored = [f"['a']{'[b]' * (i % 20)}{'.b' * (20 - i % 20)}{'.' * (i // 20)}" for i in range(4000)]
    cleaned = clean_names(stored)
    assert len(set(cleaned)) == len(stored)
    assert max(map(len, cleaned)) < 300


def test_brackets_without_end_are_replaced_in_linear_time() -> None:
    assert clean_names(["[" * 200_000]) == ["[" * 200_000]


def test_a_number_of_many_digits_is_no_layer_and_no_step() -> None:
    assert layer_numbers(f"a.{'9' * 500}.3") == (3,)
    assert numbers_in_names([f"step-{'9' * 200}.pt", f"step-{'8' * 200}.pt"]) is None
    assert numbers_in_names(["step-٣.pt", "step-²²²k.pt"]) is None
    padded = [f"step-00000000000000000000{step}.pt" for step in (12, 13)]
    assert numbers_in_names(padded) == ("step", (12, 13), True)


def test_settings_nested_deep_or_without_end_leave_the_others() -> None:
    endless: dict[str, object] = {"d_model": 8}
    endless["again"] = endless
    laughs: list[object] = ["ha"]
    for _ in range(80):
        laughs = [laughs, laughs]
    for read in (flatten, settings_of):
        found = read({"first": 1, "deep": json.loads(DEEP), "endless": endless, "laughs": laughs, "last": 2})
        assert found["first"], found["last"] == (1, 2)
        assert found["endless.again.d_model"] == 8
        assert "laughs" not in found
        assert max(map(len, found)) < 1000


def test_many_settings_are_read_in_their_order_up_to_a_limit() -> None:
    tree = {"table": {str(i): i for i in range(300_000)}, "after": {"x": 1}, "list": list(range(20_000)), "last": 3}
    assert list(flatten(tree)) == ["after.x", "last"]


def test_text_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x" * 100)
    assert read_text(tmp_path / "t", 100) == "x" * 100
    with pytest.raises(OSError, match="it has 100 bytes, and at most 99 are read"):
        read_text(tmp_path / "t", 99)


def test_numbers_of_usual_length_are_read_as_they_are() -> None:
    assert parse_json('{"state": 340282366920938463463374607431768211455}') == {"state": 2**128 - 1}
    assert parse_toml("x = 9223372036854775807")["x"] == 2**63 - 1
    with pytest.raises(ValueError, match="out of range"):
        parse_toml("x = 9223372036854775808")
    assert math.isinf(parse_json("1e999"))


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    for i in range(60):
        (tmp_path / f"again-{i}").symlink_to(".")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="is a directory without a checkpoint"):
        read_checkpoint(tmp_path)
    assert expand_run([tmp_path]) == [tmp_path]


def test_a_missing_file_among_thousands_is_missed_at_once(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"m{i}.pt").touch()
    with pytest.raises(CheckpointError, match="does not exist"):
        read_checkpoint(tmp_path / "m.pt")


def test_missing_shards_are_counted_where_there_are_many(tmp_path: Path) -> None:
    sound(tmp_path).rename(tmp_path / "model-00001-of-09001.safetensors")
    sound(tmp_path).rename(tmp_path / "model-00002-of-09001.safetensors")
    with pytest.raises(PartialModelError) as caught:
        diagnose(tmp_path)
    assert len(caught.value.details) == 21
    assert caught.value.details[-1] == "8,979 more faults"


def test_the_writers_of_the_cases_make_a_sound_layer_of_sound_parts(tmp_path: Path) -> None:
    """Else a case is refused for another reason than its own."""
    from tests.checkpoint.hostile_files import HEAD, both, layer, mapping, torch_old, torch_zip

    writers: dict[str, Write] = {
        "zip": lambda folder: torch_zip(folder / "m.pt", both({})),
        "old": lambda folder: torch_old(folder / "m.bin", HEAD + mapping(layer(b"N")) + b"."),
        "safetensors": sound,
    }
    for kind, write in writers.items():
        folder = tmp_path / kind
        folder.mkdir()
        assert len(diagnose(write(folder)).layers) == 1, kind
