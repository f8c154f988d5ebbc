"""Model directories: config.json, what is chosen, what is declined and with which advice."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmdiag import Checkpoint, diagnose, read_checkpoint
from ssmdiag.checkpoint import Container, directories
from ssmdiag.checkpoint.formats import Format, known_formats
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.compare.run_order import expand_run
from ssmdiag.errors import CheckpointError

STATE = {"layers.0.A_log": torch.zeros(4, 2), "layers.0.dt_proj.bias": torch.zeros(4)}


def write(directory: Path, name: str = "model.safetensors", state: dict[str, torch.Tensor] = STATE) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file(state, directory / name)
    elif name.endswith(".npz"):
        np.savez(directory / name, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.save(state, directory / name)
    return directory / name


def opened_file(checkpoint: Checkpoint) -> str:
    """Return the name of the one file that a directory's checkpoint was read from."""
    (path,) = {stored.container.path for stored in checkpoint.values()}
    return path.name


def test_a_format_of_folders_opens_the_whole_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def open_folder(folder: Path) -> Container:
        opened.append(folder)
        return open_container(folder / "part.bin")

    write(tmp_path / "checkpoint-700", "part.bin")
    (tmp_path / "checkpoint-700" / "parts.table").write_text("of its own")
    known = (*known_formats(), Format("parts", open_folder=open_folder, owns_folder=r"parts\.table"))
    monkeypatch.setattr(directories, "known_formats", lambda: known)
    checkpoint = read_checkpoint(tmp_path / "checkpoint-700")
    assert opened == [tmp_path / "checkpoint-700"]
    assert set(checkpoint) == set(STATE)
    assert checkpoint.train_step == 700
    assert checkpoint.size == sum(file.stat().st_size for file in opened[0].iterdir())


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.pt", "weights.npz", "last.ckpt", "consolidated.00.pth"]
)
def test_a_directory_with_one_checkpoint_opens(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m", name)
    checkpoint = read_checkpoint(tmp_path / "m")
    assert set(checkpoint) == set(STATE)
    assert (checkpoint.path, opened_file(checkpoint)) == (tmp_path / "m", path.name)
    assert checkpoint.size == path.stat().st_size


def test_safetensors_are_preferred_and_trainer_files_ignored(tmp_path: Path) -> None:
    for name in ("model.safetensors", "pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        write(tmp_path, name)
    assert opened_file(read_checkpoint(tmp_path)) == "model.safetensors"
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).unlink()
    write(tmp_path, "adapter.npz")
    assert opened_file(read_checkpoint(tmp_path)) == "adapter.npz"


def test_several_checkpoints_are_listed(tmp_path: Path) -> None:
    for step in range(8):
        write(tmp_path, f"step-{step}.safetensors")
    with pytest.raises(CheckpointError, match=r"holds 8 checkpoints: step-0\.safetensors") as caught:
        read_checkpoint(tmp_path)
    assert f"{tmp_path}/*.safetensors" in str(caught.value.advice)


# --- config.json --------------------------------------------------------------------------------


def test_settings_are_flat_and_special_floats_are_floats(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"text_config": {"time_step_limit": [0.0, Infinity], "n": 3}, "low": {"__float__": "-Infinity"}, '
        '"limit": [0.0, {"__float__": "Infinity"}], "nan": {"__float__": "NaN"}, "größe": "ü"}'
    )
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.settings["text_config.time_step_limit"] == [0.0, math.inf]
    assert checkpoint.settings["limit"] == [0.0, math.inf]
    assert checkpoint.settings["low"] == -math.inf
    assert math.isnan(checkpoint.settings["nan"])
    assert checkpoint.settings["größe"] == "ü"
    assert checkpoint.notes == ()


def test_the_config_beside_a_single_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "step-10.pt")
    (tmp_path / "config.json").write_text('{"l_max": 1024}')
    assert read_checkpoint(path).settings["l_max"] == 1024
    assert diagnose(path).context_length == 1024


@pytest.mark.one_in(2)
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000])
def test_a_broken_config_is_a_problem_and_the_weights_are_read(content: bytes, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    result = diagnose(tmp_path)
    assert len(result.layers) == 1
    (problem,) = result.problems
    assert problem.startswith(f"{tmp_path / 'config.json'} cannot be read")
    assert "usual" in problem
    assert result.exit_code() == 2


@pytest.mark.parametrize("content", [b"[1, 2]", b"null"])
def test_a_config_that_holds_no_settings_is_noted(content: bytes, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    result = diagnose(tmp_path)
    assert result.problems == ()
    (note,) = result.notes
    assert note.startswith("config.json holds no settings")


def test_a_config_that_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").symlink_to(tmp_path / "gone.json")
    (problem,) = read_checkpoint(tmp_path).problems
    assert "config.json cannot be read" in problem


# --- links, pipes, permissions ------------------------------------------------------------------


def test_a_link_that_leads_back_to_itself_is_said_to_do_so(tmp_path: Path) -> None:
    for name, target in (("one", "two"), ("two", "one"), ("self.safetensors", "self.safetensors")):
        (tmp_path / name).symlink_to(target)
    for name in ("one", "self.safetensors", "one/model.safetensors"):
        with pytest.raises(CheckpointError, match="is a link that leads back to itself"):
            read_checkpoint(tmp_path / name)


def test_snapshots_of_the_hub_cache_are_links_and_open(tmp_path: Path) -> None:
    root = tmp_path / "models--org--name"
    blob = write(root / "blobs", "0123abcd")
    save_file(STATE, blob)
    snapshot = root / "snapshots" / "f00d"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123abcd")
    (root / "blobs" / "c0ffee").write_text(json.dumps({"n_ctx": 77}))
    (snapshot / "config.json").symlink_to("../../blobs/c0ffee")
    checkpoint = read_checkpoint(snapshot)
    assert set(checkpoint) == set(STATE)
    assert checkpoint.settings == {"n_ctx": 77}
    assert checkpoint.size == blob.stat().st_size
    with pytest.raises(CheckpointError, match="without a checkpoint") as caught:
        read_checkpoint(root)
    assert f"ssmdiag inspect {snapshot}" in str(caught.value.advice)


def test_a_broken_link_says_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("../blobs/gone")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(CheckpointError, match=r"is a link to \.\./blobs/gone, which does not exist"):
            read_checkpoint(path)


def test_a_link_that_leads_to_itself_is_a_known_problem(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "model.safetensors")


def within_seconds(read: Callable[[], object]) -> BaseException | None:
    """Return what a call raises; fail if it does not come back."""
    caught: list[BaseException] = []

    def run() -> None:
        try:
            read()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it hangs"
    return caught[0] if caught else None


@pytest.mark.parametrize("name", ["model.safetensors", "pipe"])
def test_a_pipe_does_not_hang(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    error = within_seconds(lambda: read_checkpoint(tmp_path / name))
    assert isinstance(error, CheckpointError)
    assert "not a file" in error.seen
    assert isinstance(within_seconds(lambda: read_checkpoint(tmp_path)), CheckpointError)


def test_a_pipe_beside_the_weights_does_not_hang(tmp_path: Path) -> None:
    write(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    assert within_seconds(lambda: read_checkpoint(tmp_path)) is None


def test_a_device_does_not_hang() -> None:
    assert isinstance(within_seconds(lambda: read_checkpoint("/dev/zero")), CheckpointError)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_what_may_not_be_opened_is_a_known_problem(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)

    def refuse(path: object, *arguments: object, **keywords: object) -> object:
        raise PermissionError(number, os.strerror(number), str(path))

    for owner, method, path in ((os, "open", tmp_path / "model.safetensors"), (Path, "iterdir", tmp_path)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, refuse)
            with pytest.raises(CheckpointError, match="permission denied") as caught:
                read_checkpoint(path)
            assert str(path) in caught.value.seen


def test_a_failing_disk_is_a_known_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)

    def fail(path: object, *arguments: object, **keywords: object) -> object:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        read_checkpoint(path)


def test_a_wrong_name_suggests_the_right_one(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist") as caught:
        read_checkpoint(tmp_path / "modle.safetensors")
    assert "did you mean model.safetensors?" in str(caught.value.advice)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "nowhere" / "model.safetensors")
    assert "no directory" in str(caught.value.advice)


def test_names_too_long_for_the_system_are_a_known_problem(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / ("x" * 5000))


# --- what is declined ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "kind", "advice"),
    [
        (["latest", "zero_to_fp32.py", "global_step100/"], "DeepSpeed", "zero_to_fp32.py"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed", "zero_to_fp32.py"),
        ([".metadata", "__0_0.distcp", "__1_0.distcp"], "torch.distributed", "copy or save"),
        (["_CHECKPOINT_METADATA", "default/"], "orbax", "numpy.savez"),
        (["manifest.ocdbt", "d/"], "orbax", "numpy.savez"),
        (["_METADATA", "manifest.ocdbt", "d/"], "orbax", "save or copy it again"),
        (["checkpoint", "model.ckpt.data-00000-of-00001", "model.ckpt.index"], "a TensorFlow", "load_checkpoint"),
        (["saved_model.pb", "variables/", "assets/"], "a TensorFlow", "load_checkpoint"),
        (["checkpoint", "params.w/"], "TensorFlow or of an early orbax", "numpy.savez"),
        (["README.md"], "a directory without a checkpoint", "name the file"),
        ([], "it holds nothing", "name the file"),
    ],
)
def test_other_directories_are_declined_with_advice(entries: list[str], kind: str, advice: str, tmp_path: Path) -> None:
    for entry in entries:
        (tmp_path / entry).mkdir() if entry.endswith("/") else (tmp_path / entry).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=kind) as caught:
        read_checkpoint(tmp_path)
    assert advice in str(caught.value.advice)


def test_checkpoints_one_level_down_are_suggested(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-100")
    write(tmp_path / "checkpoint-200")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    assert caught.value.advice == f"ssmdiag inspect {tmp_path}/checkpoint-100 {tmp_path}/checkpoint-200"
    assert read_checkpoint(tmp_path / "checkpoint-100").train_step == 100


@pytest.mark.parametrize(
    ("content", "name", "seen"),
    [
        (b"", "model.safetensors", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "model.safetensors", "Git LFS pointer"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pytorch_model.bin", "Git LFS pointer"),
        (b"GGUF\3\0\0\0", "model.gguf", "GGUF"),
        (b"\x89HDF\r\n\x1a\n", "model.h5", "HDF5"),
        (b"\x93NUMPY\1\0", "a.npy", "single NumPy array"),
        (b"\x93NUMPY\1\0", "a.eqx", "an Equinox file, which has the values of arrays but not their names"),
        (b'{"width": 8}\n\x93NUMPY', "a.eqx", "an Equinox file"),
        (b"\x08\x0e:\xa5\x83", "model.onnx", "an ONNX graph"),
        (b"PK\x03\x04", "model.keras", "a Keras archive"),
        (b"\0" * 48, "model.ckpt-100.index", "a part of a TensorFlow checkpoint"),
        (b"\0" * 48, "variables.data-00000-of-00001", "a part of a TensorFlow checkpoint"),
        (b"\x08\x01", "saved_model.pb", "a part of a TensorFlow checkpoint"),
        (b"BZh91AY&SY", "model.tar.bz2", "compressed"),
        (b"\x1f\x8b\x08", "model.pt.gz", "gzip"),
        (b"<!DOCTYPE html><html>", "model.safetensors", "web page"),
        (b"#!/bin/sh\necho\n", "run.sh", "not a checkpoint"),
        (b"\x82\xa5model", "model.msgpack", "not a checkpoint"),
        (b"PK\x03\x04 cut", "model.pt", "torn"),
        (b"PK\x05\x06" + b"\0" * 18, "model.npz", "torn"),
    ],
)
def test_files_that_are_no_checkpoint_are_named_for_what_they_are(
    content: bytes, name: str, seen: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=seen) as caught:
        read_checkpoint(tmp_path / name)
    assert name in caught.value.seen
    assert caught.value.advice


def test_a_zip_of_other_things_says_what_it_holds(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("README.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without tensors \(it holds README.txt\)"):
        read_checkpoint(tmp_path / "m.zip")


def test_a_directory_of_runs_asks_for_one_of_them(tmp_path: Path) -> None:
    for arm in ("best-lr0.01-seed0", "exp-lr0.01-seed0"):
        for step in (0, 20):
            write(tmp_path / arm, f"step-{step:02d}.safetensors")
    (tmp_path / "state-7d8b9a55e2c6.state").write_bytes(b"no checkpoint")
    said = rf"holds 2 runs, each in a folder of its own: best-lr0.01-seed0, exp(.|\n)*ssmdiag compare {tmp_path}/best"
    for read in (read_checkpoint, lambda path: expand_run([path])):
        with pytest.raises(CheckpointError, match=said):
            read(tmp_path)


def test_directories_of_one_checkpoint_each_are_a_run(tmp_path: Path) -> None:
    for step in (10, 20):
        write(tmp_path / f"checkpoint-{step}")
        for rank in (0, 1):
            write(tmp_path / f"checkpoint-{step}", f"rng_state_{rank}.pth")
    assert [path.name for path in expand_run([tmp_path])] == ["checkpoint-10", "checkpoint-20"]
