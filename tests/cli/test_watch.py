"""`ssmdiag watch`: a line for each checkpoint, formats, what is torn or foreign, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import ssmdiag.diagnosis
from ssmdiag.diagnosis import diagnose
from ssmdiag.watching import folder as folder_module
from tests.compare.test_comparison import EXAMPLES, STEPS, drifting, steady, write_run
from tests.watching.test_folder import Time

Run = Callable[..., tuple[int, str, str]]
S4D = EXAMPLES / "s4d-digits"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    clock.now = time.time() + 60  # what is there is old
    monkeypatch.setattr(folder_module, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for no laws: they take most of the time, and all but one test does without."""
    monkeypatch.setattr(ssmdiag.diagnosis, "diagnose", partial(diagnose, memory=False))


@pytest.fixture
def watch(run: Run, clock: Time) -> Run:
    return lambda *arguments: run("watch", *arguments, "--idle", "0")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Three checkpoints of the example, whose first is of train step 0."""
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (0, 500, 2000):
        shutil.copy(S4D / f"step-{step:05}.safetensors", directory)
    return directory


def test_what_is_there_is_a_line_each_in_order(watch: Run, directory: Path) -> None:
    (directory / "step-02000.safetensors").rename(directory / "step-100.safetensors")  # the file says 2000
    code, out, err = watch(directory)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "OK       step         0  margin 5.0e-4  layer 1  half-life 1.4k   –",
        "OK       step       500  margin 5.0e-4  layer 1  half-life 1.4k   –",
        "OK       step     2,000  margin 4.6e-4  layer 1  half-life 1.5k   –",
    ]


def test_lines_have_law_and_findings_as_the_readme_shows(
    watch: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ssmdiag.diagnosis, "diagnose", diagnose)
    shutil.copy(EXAMPLES / "lru-digits" / "step-02000.safetensors", tmp_path)
    code, out, err = watch(tmp_path, "--length", 64)
    assert (code, err) == (0, "")
    readme = Path(__file__).parents[2] / "README.md"
    assert textwrap.indent(out, "    ") in readme.read_text(encoding="utf-8")
    assert out == "OK       step     2,000  margin 0.013   layer 2  half-life 53     exp. tails\n"


def test_lines_of_json_say_the_same_and_are_added_to_a_file(watch: Run, directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    for _ in range(2):
        assert watch(directory, "--format", "jsonl", "-o", file)[:2] == (0, "")
    documents = [json.loads(line) for line in file.read_text().splitlines()]
    assert [document["step"] for document in documents] == [0, 500, 2000] * 2
    last = documents[-1]
    assert (last["schema_version"], last["unit"], last["slowest_layer"]) == (1, "step", "s4_layers.1")
    assert last["margin"] == min(layer["margin"] for layer in last["layers"])
    assert last["half_life"] == max(layer["half_life"] for layer in last["layers"])
    assert last["status"] == "ok"
    assert {layer["verdict"] for layer in last["layers"]} == {"undetermined"}
    assert {layer["verdict"] for layer in documents[0]["layers"]} == {None}


@pytest.mark.slow
def test_a_file_of_text_is_replaced(watch: Run, directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "r"
    for _ in range(2):
        assert watch(directory, "-o", file)[:2] == (0, "")
        assert len(file.read_text().splitlines()) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "fail_on", "expected"),
    [(drifting, "converging", 1), (drifting, "never", 0), (steady, "converging", 0)],
)
def test_fail_on_ends_with_one_as_compare_does(
    watch: Run, run: Run, tmp_path: Path, world: Callable[[int, str], torch.Tensor], fail_on: str, expected: int
) -> None:
    write_run(tmp_path, STEPS, world)
    code, out, _ = watch(tmp_path, "--fail-on", fail_on)
    assert code == expected == run("compare", tmp_path, "--memory", "none", "--fail-on", fail_on)[0]
    lines = out.splitlines()
    assert len(lines) == len(STEPS)
    assert ("layer 1 converging" in lines[-1]) == (world is drifting)
    assert lines[-1].startswith(("WARNING  ", "PROBLEM  "))
    assert max(map(len, lines)) < 80


def test_it_fails_at_the_first_checkpoint_that_shows_it_and_deleted_ones_count(
    run: Run, clock: Time, tmp_path: Path
) -> None:
    source = tmp_path / "all"
    source.mkdir()
    paths = write_run(source, STEPS, drifting)
    there = tmp_path / "run"
    there.mkdir()
    start = clock.now
    for number, path in enumerate(paths):

        def next_one(path: Path = path) -> None:
            for old in there.iterdir():
                old.unlink()
            shutil.copy(path, there)
            os.utime(there / path.name, (clock.now, clock.now))

        clock.at(start - 1_000_000 + 20 * number, next_one)
    code, out, err = run("watch", there, "--fail-on", "converging", "--idle", "5")
    assert code == 1
    assert 5 <= len(out.splitlines()) < len(STEPS)
    assert "  layer 1 converging  " in out.splitlines()[-1]
    assert err == f"{there} holds no numbered checkpoint yet: waiting.\n"


def test_a_torn_file_is_a_remark_and_read_when_it_is_whole(run: Run, clock: Time, tmp_path: Path) -> None:
    whole = (S4D / "step-02000.safetensors").read_bytes()
    path = tmp_path / "step-02000.safetensors"
    path.write_bytes(whole[:20_000])
    start = clock.now - 1_000_000

    def grow() -> None:
        path.write_bytes(whole)
        os.utime(path, (clock.now, clock.now))

    clock.at(start + 90, grow)
    code, out, err = run("watch", tmp_path, "--idle", "3")
    assert code == 0
    assert out.startswith("OK       step     2,000  margin 4.6e-4")
    assert len(out.splitlines()) == 1
    assert "step-02000.safetensors cannot be read yet, and is tried again: " in err
    assert err.count("is torn: 20,000 bytes") == 1


def test_files_without_a_recurrence_are_left_out_with_a_remark(watch: Run, tmp_path: Path) -> None:
    shutil.copy(S4D / "step-00100.safetensors", tmp_path)
    torch.save({"linear.weight": torch.zeros(3, 3)}, tmp_path / "head-100.pt")
    code, out, err = watch(tmp_path)
    assert (code, len(out.splitlines())) == (0, 1)
    assert err.startswith("head-100.pt is left out: no recurrent layer recognised in head-100.pt (1 tensor")
    assert watch(tmp_path, "--quiet")[2] == ""


def test_a_model_that_is_not_finite_is_marked(watch: Run, tmp_path: Path) -> None:
    def broken(step: int, layer: str) -> torch.Tensor:
        values = steady(step, layer)
        return values.fill_(torch.nan) if (step, layer) == (STEPS[-1], "1") else values

    write_run(tmp_path, STEPS[:3] + STEPS[-1:], broken)
    code, out, _ = watch(tmp_path, "--fail-on", "crossing")
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()] == [*3 * ["WARNING"], "PROBLEM"]
    assert "  96 modes not finite in layer 1  " in out.splitlines()[-1]
    assert max(map(len, out.splitlines())) < 80


def test_names_cannot_act_on_a_terminal(watch: Run, tmp_path: Path) -> None:
    shutil.copy(S4D / "step-00100.safetensors", tmp_path / "a\x1b[31m\n::x::1.safetensors")
    (tmp_path / "b\x1b[31m\n::x::2.safetensors").write_bytes(b"torn")
    code, out, err = watch(tmp_path)
    assert code == 0
    assert "\x1b" not in out + err
    assert not any(line.startswith("::") for line in (out + err).splitlines())


def test_a_file_that_is_too_new_to_be_read_is_no_reason_to_say_that_none_is_there(
    run: Run, clock: Time, tmp_path: Path
) -> None:
    shutil.copy(S4D / "step-00100.safetensors", tmp_path)
    clock.now -= 60  # it is of now
    code, out, err = run("watch", tmp_path, "--idle", "0")
    assert (code, len(out.splitlines()), err) == (0, 1, "")


def test_a_checkpoint_of_another_model_has_its_line_and_a_remark(run: Run, clock: Time, tmp_path: Path) -> None:
    shutil.copy(S4D / "step-00100.safetensors", tmp_path)
    shutil.copy(S4D / "step-00100.safetensors", tmp_path / "step-00150.safetensors")
    lru = next((S4D.parent / "lru-digits").glob("*.safetensors"))
    shutil.copy(lru, tmp_path / "step-00200.safetensors")
    code, out, err = run("watch", tmp_path, "--idle", "0")
    assert (code, len(out.splitlines())) == (0, 3)
    assert err == "step-00200.safetensors has none of the layers of the first checkpoint: it is of another model.\n"


@pytest.mark.parametrize("there", [True, False])
def test_it_waits_with_a_remark_where_nothing_is_written_yet(there: bool, watch: Run, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    if there:
        directory.mkdir()
    code, out, err = watch(directory)
    assert (code, out) == (0, "")
    assert err == f"{directory} {'holds no numbered checkpoint' if there else 'is not there'} yet: waiting.\n"


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ([S4D / "step-00100.safetensors"], "is a file"),
        ([EXAMPLES], "holds runs in folders of their own"),
        ([S4D, "--assume", "family=none"], "no such family"),
        ([S4D, "--interval", "nan"], "--interval"),
        ([S4D, "--idle", "nan"], "--idle"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: list[object], seen: str, run: Run, clock: Time) -> None:
    code, out, err = run("watch", "--idle", "0", *arguments)
    assert (code, out) == (2, "")
    assert seen in err


def test_no_checkpoint_is_written_over(watch: Run, tmp_path: Path) -> None:
    for name in ("step-00100.safetensors", "step-00250.safetensors"):
        shutil.copy(S4D / name, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for format in ("text", "jsonl"):
        code, out, err = watch(tmp_path, "-o", tmp_path / "step-00250.safetensors", "-f", format)
        assert (code, out) == (2, "")
        assert err.startswith("error: --output")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 0), (SystemExit(143), 143)])
def test_ctrl_c_is_the_usual_end(
    end: BaseException, code: int, run: Run, clock: Time, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sleep(seconds: float) -> None:
        raise end

    shutil.copy(S4D / "step-00100.safetensors", tmp_path)
    monkeypatch.setattr(clock, "sleep", sleep)
    ended, out, err = run("watch", tmp_path)
    assert (ended, len(out.splitlines()), err) == (code, 1, "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_each_line_is_out_at_once(number: int, expected: int, tmp_path: Path) -> None:
    shutil.copy(S4D / "step-00100.safetensors", tmp_path)
    command = [sys.executable, "-m", "ssmdiag", "watch", str(tmp_path), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("OK       step       100  margin")
        process.send_signal(number)
        assert process.wait(60) == expected
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
