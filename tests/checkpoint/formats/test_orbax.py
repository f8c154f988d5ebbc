"""orbax: what orbax wrote is read to the bit, one array at a time; what was lost or made to mislead is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.formats import orbax
from ssmdiag.compare.run_order import expand_run
from ssmdiag.errors import CheckpointError
from ssmdiag.watching.folder import RunFolder
from tests.checkpoint.formats.orbax_folders import describe, unpack, write

LAYOUTS = [(ocdbt, zarr3) for ocdbt in (True, False) for zarr3 in (True, False)]
ARRAYS = {
    "params.layers_0.A_log": np.linspace(-1, 3, 32, dtype=np.float32).reshape(8, 4),
    "params.layers_0.D": np.arange(8, dtype=np.float64),
    "step": np.array(70, dtype=np.int32),
}


def test_what_orbax_wrote_is_read_to_the_bit(tmp_path: Path) -> None:
    step = unpack(tmp_path)
    truth = np.load(tmp_path / "truth.npz")
    for folder in (step, step / "state"):
        checkpoint = read_checkpoint(folder)
        assert set(checkpoint) == set(truth.files)
        assert checkpoint.format == "orbax, OCDBT, zarr"
        assert (checkpoint.train_step, checkpoint.notes) == (3, ())
        assert checkpoint.settings == {"d_model": 32, "l_max": 512}
        for name, value in truth.items():
            assert checkpoint[name].shape == value.shape
            assert np.array_equal(checkpoint[name].load().double().numpy(), value), name
    assert checkpoint["encoder.layers_0.norm.scale"].load().dtype == torch.bfloat16
    result = diagnose(step)
    assert [layer.family for layer in result.layers] == ["s5", "s5"]
    assert result.context_length == 512
    assert result.problems == ()


def test_the_size_of_a_folder_counts_the_folders_in_it(tmp_path: Path) -> None:
    step = unpack(tmp_path)
    assert read_checkpoint(step).size == sum(file.stat().st_size for file in step.rglob("*") if file.is_file())


@pytest.mark.parametrize(("ocdbt", "zarr3"), LAYOUTS)
def test_every_layout_and_type_is_read_to_the_bit(ocdbt: bool, zarr3: bool, tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    types = {
        "float32", "float64", "float16", "complex64", "complex128", "int8", "int16", "int32", "int64", "uint8",
        "uint32", "bool", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
    }  # fmt: skip
    arrays = {f"params.x_{np.dtype(kind).name}": (9 * dice.standard_normal((5, 3))).astype(kind) for kind in types}
    arrays["params.scalar"] = np.array(2.5, dtype=np.float32)
    arrays["params.mlp/~/linear_0.w"] = np.ones((2, 2), np.float32)
    arrays["params.i4"] = np.arange(4).astype(ml_dtypes.int4)
    checkpoint = read_checkpoint(write(tmp_path / "m", arrays, ocdbt=ocdbt, zarr3=zarr3))
    assert checkpoint.notes == ("1 array of int4 not read",)
    del arrays["params.i4"]
    assert len(checkpoint) == len(arrays)
    for name, value in arrays.items():
        stored = checkpoint[name.removeprefix("params.").replace("/", ".")]
        assert (stored.dtype, stored.shape) == (value.dtype.name, value.shape)
        loaded = stored.load()
        assert str(loaded.dtype) == f"torch.{value.dtype.name}"
        assert loaded.flatten().view(torch.uint8).numpy().tobytes() == value.tobytes(), name


@pytest.mark.parametrize(("ocdbt", "zarr3"), LAYOUTS)
def test_an_array_in_chunks_is_joined_and_a_lost_chunk_missed(ocdbt: bool, zarr3: bool, tmp_path: Path) -> None:
    value = np.arange(70, dtype=np.float32).reshape(10, 7)
    folder = write(tmp_path / "m", {"params.A_log": value, "params.D": value[0]}, ocdbt=ocdbt, zarr3=zarr3, chunk=3)
    assert np.array_equal(read_checkpoint(folder)["A_log"].load().numpy(), value)
    if not ocdbt:
        lost = folder / "params.A_log" / ("c/2/0" if zarr3 else "2.0")
        lost.unlink()
        assert np.array_equal(read_checkpoint(folder)["D"].load().numpy(), value[0])
        with pytest.raises(CheckpointError, match="array A_log cannot be read"):
            read_checkpoint(folder)["A_log"].load()
        # Earlier versions of orbax leave out what is all zeros.
        describe(folder, ["params.A_log"], use_zarr3=zarr3, store_array_data_equal_to_fill_value=False)
        assert not read_checkpoint(folder)["A_log"].load()[6:9].any()


def test_what_several_processes_wrote_is_read_through_the_manifest_that_joins_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", ARRAYS)
    shutil.copytree(folder / "d", folder / "ocdbt.process_0" / "d")
    assert np.array_equal(read_checkpoint(folder)["layers_0.A_log"].load().numpy(), ARRAYS["params.layers_0.A_log"])


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    big = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    folder = write(tmp_path / "m", {f"params.w{number}": big + number for number in range(3)}, ocdbt=False)
    (folder / "params.w1" / "0.0").write_bytes(b"damaged")
    checkpoint = read_checkpoint(folder)
    assert checkpoint["w1"].shape == (512, 512)
    assert checkpoint.bytes_read == 0
    assert np.array_equal(checkpoint["w2"].load().numpy(), big + 2)
    with pytest.raises(CheckpointError, match="array w1 cannot be read"):
        checkpoint["w1"].load()


def test_the_step_is_in_the_tree_or_in_the_name_of_the_manager_s_folder(tmp_path: Path) -> None:
    weights = {name: value for name, value in ARRAYS.items() if name != "step"}
    assert read_checkpoint(write(tmp_path / "a", ARRAYS)).train_step == 70
    for name, step in (("900", 900), ("ckpt_0900", 900), ("v2", None)):
        write(tmp_path / name / "default", weights)
        (tmp_path / name / "_CHECKPOINT_METADATA").write_text("{}")
        assert read_checkpoint(tmp_path / name).train_step == step
    write(tmp_path / "1234", weights)
    assert read_checkpoint(tmp_path / "1234").train_step is None


def test_of_several_items_the_weights_are_read_or_all_are_named(tmp_path: Path) -> None:
    for item in ("params", "ema"):
        write(tmp_path / "5" / item, ARRAYS)
    (tmp_path / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    assert read_checkpoint(tmp_path / "5").notes == ("the item params was read; ema beside it not",)
    (tmp_path / "5" / "params").rename(tmp_path / "5" / "other")
    with pytest.raises(CheckpointError, match="holds 2 items: ema, other") as caught:
        read_checkpoint(tmp_path / "5")
    assert caught.value.advice == f"ssmdiag inspect {tmp_path / '5' / 'ema'}"


# --- the folder of a run -----------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (90, 100, 1000):
        write(tmp_path / "run" / str(step) / "default", {**ARRAYS, "step": np.array(step)})
        (tmp_path / "run" / str(step) / "_CHECKPOINT_METADATA").write_text("{}")
    return tmp_path / "run"


def test_the_folder_of_a_run_says_which_folders_can_be_named(run: Path) -> None:
    with pytest.raises(
        CheckpointError, match="holds 3 checkpoints, each in a folder of its own: 90, 100, 1000"
    ) as caught:
        read_checkpoint(run)
    assert caught.value.advice == f"ssmdiag inspect {run / '1000'}, or ssmdiag compare {run}"
    for step in ("90", "100"):
        shutil.rmtree(run / step)
    with pytest.raises(CheckpointError, match="holds 1 checkpoint, in a folder of its own: 1000") as caught:
        read_checkpoint(run)
    assert caught.value.advice == f"ssmdiag inspect {run / '1000'}"


def test_a_run_is_compared_and_watched_step_by_step(run: Path) -> None:
    (run / "2000.orbax-checkpoint-tmp").mkdir()
    shutil.copytree(run / "100" / "default", run / "2000.orbax-checkpoint-tmp" / "default")
    (run / "2000.orbax-checkpoint-tmp" / "_CHECKPOINT_METADATA").write_text("{}")
    long_ago = time.time() - 3600
    for file in run.rglob("*"):
        os.utime(file, (long_ago, long_ago))
    assert [path.name for path in RunFolder(run, 5).look()] == ["90", "100", "1000"]
    shutil.rmtree(run / "2000.orbax-checkpoint-tmp")
    assert {path.name for path in expand_run([run])} == {"90", "100", "1000"}


# --- what is refused -----------------------------------------------------------------------------------------------


def test_without_tensorstore_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "m", ARRAYS)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(CheckpointError, match="tensorstore, which reads those, is not installed") as caught:
        read_checkpoint(folder)
    assert caught.value.advice == "pip install 'ssmdiag[jax]'"


def _metadata(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        said = json.loads((folder / "_METADATA").read_text())
        change(said)
        (folder / "_METADATA").write_text(json.dumps(said))

    return damage


def _renamed(key: str) -> Callable[[Path], None]:
    return _metadata(lambda said: said["tree_metadata"]["step"].update(key_metadata=[{"key": key, "key_type": 2}]))


def _array(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "params.layers_0.A_log" / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "_METADATA").write_text("{"), "not a whole orbax checkpoint"),
        (lambda folder: (folder / "_METADATA").write_text("[1]"), "is not a table"),
        (lambda folder: (folder / "_METADATA").write_text('{"tree_metadata": {"a": 3}}'), "does not describe a"),
        (lambda folder: shutil.rmtree(folder / "params.layers_0.D"), "params.layers_0.D is not in its store"),
        (_renamed("../../secret"), r"an impossible name: \.\./\.\./secret"),
        (_renamed("/etc/passwd"), "an impossible name: /etc/passwd"),
        (_renamed("x" * 2000), "an impossible name"),
        (_renamed("params"), "is in an array|is there twice|not in its store"),
        (lambda folder: (folder / "step" / ".zarray").write_text("[]"), "is not zarr's"),
        (lambda folder: (folder / "step" / ".zarray").write_bytes(b"{" + b" " * 10**6), "description of step has"),
        (_array(shape=[2**62, 2**62]), "impossible shape"),
        (_array(shape=[-1, 4]), "impossible shape"),
        (_array(shape=[8]), "impossible shape"),
        (_array(dtype=["f4"]), "impossible shape"),
        (_array(compressor={"id": "blosc"}), "is packed by blosc, which orbax does not use"),
        (_array(filters=[{"id": "unheard of"}]), "is packed by unheard of"),
        (_array(compressor=3), "is not zarr's"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_for_what_it_is(damage: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "m", ARRAYS, ocdbt=False)
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_checkpoint(folder)
    assert caught.value.seen.startswith(str(folder))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_array(shape=[2**20, 2**20], chunks=[2**20, 2**20]), "more than the folder can hold"),
        (_array(shape=[8, 4], chunks=[2**20, 2**12]), "more than the folder can hold"),
        (_array(shape=[2**12, 2**12], chunks=[1, 1]), "more than the folder can hold"),
        (_array(dtype="<f2"), "cannot be read"),
        (lambda folder: (folder / "params.layers_0.A_log" / "0.0").write_bytes(b"(\xb5/\xfd"), "cannot be read"),
    ],
)  # fmt: skip
def test_an_array_that_cannot_be_as_described_is_refused_in_no_time(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "m", ARRAYS, ocdbt=False)
    damage(folder)
    checkpoint = read_checkpoint(folder)
    assert np.array_equal(checkpoint["layers_0.D"].load().numpy(), ARRAYS["params.layers_0.D"])
    start = time.process_time()
    with pytest.raises(CheckpointError, match=said):
        checkpoint["layers_0.A_log"].load()
    assert time.process_time() - start < 2


def test_arrays_that_unpack_to_more_and_more_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax, "MOST_UNPACKED", 4096)
    zeros = {f"params.w{number}": np.zeros((2000, 50), np.float32) for number in range(4)}
    checkpoint = read_checkpoint(write(tmp_path / "m", zeros))
    with pytest.raises(CheckpointError, match="more than the folder can hold"):
        checkpoint["w0"].load()
    monkeypatch.setattr(orbax, "MOST_UNPACKED", 400_000)
    checkpoint = read_checkpoint(tmp_path / "m")
    for _ in range(5):
        assert not checkpoint["w0"].load().any()
    with pytest.raises(CheckpointError, match="was read too often"):
        checkpoint["w1"].load()


def test_an_unfinished_save_is_said_to_be_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "m.orbax-checkpoint-tmp", ARRAYS)
    with pytest.raises(CheckpointError, match="orbax has not finished it"):
        read_checkpoint(folder)
    (folder / "_METADATA").unlink()
    with pytest.raises(CheckpointError, match="without _METADATA"):
        read_checkpoint(folder)
