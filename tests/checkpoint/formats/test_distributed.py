"""torch.distributed.checkpoint: what torch's own writers wrote is read; what contradicts itself is refused by name."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.formats import dcp_metadata
from ssmdiag.checkpoint.sources.slice import _SliceFile
from ssmdiag.compare.run_order import expand_run, order_checkpoints, stored_step
from ssmdiag.errors import CheckpointError, PartialModelError, UnsafePickleError
from tests.checkpoint.formats.distributed_files import WRITERS, mamba, save, sharded

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
STATE = mamba()
FREE = ("A_log", "D", "bias")
"""Endings of the names of parameters without weight decay."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three ranks with an optimiser and a step, as torchtitan leaves it."""
    folder = tmp_path_factory.mktemp("run") / "step-700"

    def state(rank: int) -> dict[str, Any]:
        moments = {f"state.{name}.exp_avg": value.float() for name, value in STATE.items()}
        groups = {
            f"param_groups.{name}.{key}": value
            for name in STATE
            for key, value in {"lr": 1e-3, "weight_decay": 0.0 if name.endswith(FREE) else 0.1}.items()
        }
        return {
            "model": sharded(STATE, rank, 3),
            "optimizer": {**sharded(moments, rank, 3), **groups},
            "train_state": {"step": torch.tensor(1234, dtype=torch.int32), "ntokens_seen": torch.tensor(5.0)},
            "lr_scheduler": {"last_epoch": 1234},
        }

    save(folder, state, 3)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / written.name))


def require_equal(folder: Path, state: Mapping[str, Tensor]) -> None:
    checkpoint = read_checkpoint(folder)
    assert set(checkpoint) == set(state)
    for name, value in state.items():
        assert checkpoint[name].shape == tuple(value.shape)
        loaded = checkpoint[name].load()
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value), name


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("world", [2, pytest.param(5, marks=pytest.mark.slow), 8])
def test_every_tensor_that_ranks_wrote_is_whole(world: int, writer: str, dim: int, tmp_path: Path) -> None:
    """Ten rows on eight ranks: some ranks have one, the last ones none."""
    save(tmp_path / "m", lambda rank: {"model": sharded(STATE, rank, world, dim)}, world, WRITERS[writer])
    require_equal(tmp_path / "m", STATE)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_processes_wrote_together_is_whole(ranks: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += ["-m", "tests.checkpoint.formats.gloo_ranks", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=Path(__file__).parents[3], env=environment, timeout=300)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 8
    for folder in folders:
        require_equal(folder, STATE)


def test_torch_itself_loads_the_same(written: Path) -> None:
    state = {"model": {name: torch.full_like(value, torch.nan) for name, value in STATE.items()}}
    dcp.load(state, checkpoint_id=written, no_dist=True)
    require_equal(written, state["model"])


def test_only_the_slices_of_a_wanted_tensor_are_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = _SliceFile.readinto

    def count(self: _SliceFile, buffer: bytearray) -> int:
        read.append(whole(self, buffer))
        return read[-1]

    checkpoint = read_checkpoint(written)
    monkeypatch.setattr(_SliceFile, "readinto", count)
    checkpoint["layers.1.mixer.A_log"].load()
    assert 0 < sum(read) < sum(file.stat().st_size for file in written.glob("*.distcp")) / 4


def test_step_and_optimizer_are_read(written: Path) -> None:
    checkpoint = read_checkpoint(written)
    assert checkpoint.train_step == 1234
    assert checkpoint.format == "torch.distributed checkpoint, 3 files"
    assert not checkpoint.notes
    decays = {group.weight_decay: group for group in checkpoint.optimizer_groups}
    assert decays.keys() == {0.0, 0.1}
    assert set(decays[0.0].parameters or ()) == {name for name in STATE if name.endswith(FREE)}
    assert {group.learning_rate for group in checkpoint.optimizer_groups} == {1e-3}
    assert sum(group.count for group in checkpoint.optimizer_groups) == len(STATE)


def test_the_rules_on_optimizers_see_it(written: Path, tmp_path: Path) -> None:
    """Weight decay on A_log is SSM501."""
    groups = [{"lr": 1e-3, "weight_decay": 0.1, "params": list(STATE)}]
    moments = {name: {"exp_avg": value.float()} for name, value in STATE.items()}
    state = {"model": STATE, "optimizer": {"state": moments, "param_groups": groups}}
    dcp.save(state, checkpoint_id=tmp_path / "m", no_dist=True)
    assert "SSM501" in {finding.code for finding in diagnose(tmp_path / "m").findings}
    assert "SSM501" not in {finding.code for finding in diagnose(written).findings}


def test_folders_of_steps_are_a_run(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "step-1000")
    inside = expand_run([folder.parent])
    assert [path.name for path in inside] == ["step-1000", "step-700"]
    run = order_checkpoints(inside, [stored_step(path) for path in inside])
    assert run.order == [1, 0]
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder.parent)
    assert "step-700" in caught.value.seen
    assert f"ssmdiag inspect {folder.parent}/step-" in str(caught.value.advice)


# --- layouts of trainers ----------------------------------------------------------------------------


def one_rank(folder: Path, state: Mapping[str, Any]) -> Path:
    dcp.save(dict(state), checkpoint_id=folder, no_dist=True)
    return folder


def test_lightning_keeps_settings_and_step_beside(tmp_path: Path) -> None:
    folder = one_rank(tmp_path / "last.ckpt", {"model": STATE})
    torch.save({"global_step": 300, "hyper_parameters": {"l_max": 512}}, folder / "meta.pt")
    require_equal(folder, STATE)
    checkpoint = read_checkpoint(folder)
    assert checkpoint.train_step == 300
    assert checkpoint.settings["l_max"] == 512


def test_accelerate_keeps_the_optimizer_in_a_folder_beside(tmp_path: Path) -> None:
    one_rank(tmp_path / "checkpoint_3" / "pytorch_model_fsdp_0", {"model": STATE})
    groups = [{"lr": 0.25, "weight_decay": 0.5, "params": list(STATE)}]
    other = one_rank(tmp_path / "checkpoint_3" / "optimizer_0", {"optimizer": {"state": {}, "param_groups": groups}})
    for name in ("scheduler.bin", "sampler.bin"):
        torch.save({"last_epoch": torch.ones(3)}, tmp_path / "checkpoint_3" / name)
    require_equal(tmp_path / "checkpoint_3", STATE)
    checkpoint = read_checkpoint(tmp_path / "checkpoint_3")
    assert checkpoint.notes == ("pytorch_model_fsdp_0/ in it was read",)
    assert [group.learning_rate for group in checkpoint.optimizer_groups] == [0.25]
    shutil.rmtree(other)
    one_rank(other, {"optimizer": {"state": {"a.exp_avg": torch.ones(2)}}})
    with pytest.raises(CheckpointError, match="without weights: optimizer") as caught:
        read_checkpoint(other)
    assert "pytorch_model_fsdp_0" in str(caught.value.advice)


def test_averaged_weights_are_left_out_by_name(tmp_path: Path) -> None:
    folder = one_rank(tmp_path / "m", {"ema": mamba(seed=1), "model": STATE})
    require_equal(folder, STATE)
    assert read_checkpoint(folder).notes == ("the weights under 'model' were read; tensors under ema were not",)


@pytest.mark.parametrize("outer", [("state",), ("app",), ()])
def test_the_key_of_the_weights_is_no_part_of_their_names(outer: tuple[str, ...], tmp_path: Path) -> None:
    state: dict[str, Any] = {"model": STATE, "optim": {"state": {"layers.0.mixer.A_log.exp_avg": torch.ones(3)}}}
    for key in outer:
        state = {key: state}
    require_equal(one_rank(tmp_path / "m", state), STATE)


def test_names_that_begin_with_model_keep_it(tmp_path: Path) -> None:
    """As in a state dict of transformers, which is saved flat."""
    state = mamba(prefix="model.layers")
    require_equal(one_rank(tmp_path / "m", state), state)


def test_megatrons_projections_are_joined_and_its_optimizer_is_no_weight(tmp_path: Path) -> None:
    parts = {part: torch.randn(rows, 6) for part, rows in {"z": 8, "x": 8, "B": 4, "C": 4, "dt": 2}.items()}
    name = "decoder.layers.0.mixer.in_proj.weight"
    state = {f"{name}.{part}": parts[part] for part in ("dt", "C", "B", "x", "z")}
    state |= {f"optimizer.state.exp_avg.{key}": torch.ones_like(value) for key, value in state.items()}
    state["decoder.layers.0.mixer.conv1d.weight.x"] = torch.ones(8, 1, 4)  # B and C are not there
    folder = one_rank(tmp_path / "iter_0000300", state)
    torch.save({"iteration": 300, "args": {"seq_length": 99}}, folder / "common.pt")
    whole = torch.cat([parts[part] for part in ("z", "x", "B", "C", "dt")])
    require_equal(folder, {name: whole, "decoder.layers.0.mixer.conv1d.weight.x": torch.ones(8, 1, 4)})
    assert read_checkpoint(folder).settings == {"seq_length": 99}


# --- faults ---------------------------------------------------------------------------------------


def forge(folder: Path, change: Callable[[Metadata], object]) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def place_of(metadata: Metadata, name: str, row: int = 0) -> Any:
    rest = (0,) * (len(metadata.state_dict_metadata[name].size) - 1)
    return metadata.storage_data[MetadataIndex(name, (row, *rest))]


NAME = "model.layers.1.mixer.A_log"


def set_place(**values: Any) -> Callable[[Metadata], object]:
    return lambda metadata: place_of(metadata, NAME).__dict__.update(values)


def chunks(metadata: Metadata) -> list[ChunkStorageMetadata]:
    return metadata.state_dict_metadata[NAME].chunks


FORGED: Mapping[str, tuple[Callable[[Metadata], object], str]] = {
    "a gap": (lambda m: chunks(m).pop(), "40 values, and its chunks 32"),
    "a chunk twice": (lambda m: chunks(m).append(chunks(m)[0]), "40 values, and its chunks 56"),
    "a chunk outside": (lambda m: setattr(chunks(m)[2], "offsets", torch.Size([9, 0])), "reaches outside it"),
    "a chunk nowhere": (lambda m: setattr(chunks(m)[1], "offsets", torch.Size([3, 0])), "is nowhere"),
    "shared bytes": (set_place(offset=0), "share bytes of __0_0"),
    "a path outside": (set_place(relative_path="../__0_0.distcp"), "points outside its folder: ../__0_0"),
    "an absolute path": (set_place(relative_path="/etc/passwd"), "points outside its folder: /etc/passwd"),
    "a name with a NUL": (set_place(relative_path="a\0b"), "points outside its folder"),
    "a negative offset": (set_place(offset=-1), "no name and numbers"),
    "a huge length": (set_place(length=2**59), "share bytes of __0_0"),
    "an extension": (set_place(transform_descriptors=["stream.zstd"]), "an extension of the writer"),
    "a huge tensor": (lambda m: setattr(m.state_dict_metadata[NAME], "size", torch.Size([2**58, 4])), "no shape"),
    "too few bytes": (set_place(length=64), "SAFETENSORS"),
    "no places": (lambda m: setattr(m, "storage_data", None), "no table"),
    "no chunks": (lambda m: setattr(m.state_dict_metadata[NAME], "chunks", None), "no chunks"),
    "another class": (lambda m: m.state_dict_metadata.update({NAME: 3}), "no TensorStorageMetadata"),
}


@pytest.mark.parametrize("fault", FORGED)
def test_metadata_that_contradicts_itself_is_refused(fault: str, folder: Path) -> None:
    change, says = FORGED[fault]
    forge(folder, change)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert re.search(re.escape(says), str(caught.value))
    assert "step-700" in caught.value.seen
    assert caught.value.advice


def test_chunks_of_the_right_size_that_overlap_are_refused_when_read(folder: Path) -> None:
    """Rows 0-3, 0-3 and 8-9 are ten rows, but rows 4-7 are not among them."""

    def change(metadata: Metadata) -> None:
        chunks(metadata)[1].offsets = torch.Size([1, 0])
        metadata.storage_data[MetadataIndex(NAME, (1, 0))] = place_of(metadata, NAME, 4)

    forge(folder, change)
    tensor = read_checkpoint(folder)["layers.1.mixer.A_log"]
    with pytest.raises(CheckpointError, match=r"A_log cannot be read \(two chunks hold the values at \[1, 0\]"):
        tensor.load()


def test_a_chunk_of_another_shape_is_refused_when_read(folder: Path) -> None:
    def change(metadata: Metadata) -> None:
        one, other = (place_of(metadata, name) for name in (NAME, "model.layers.1.mixer.D"))
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__

    forge(folder, change)
    with pytest.raises(CheckpointError, match=r"holds float32 \[4\], \.metadata says float32 \[4, 4\]"):
        read_checkpoint(folder)["layers.1.mixer.A_log"].load()


def test_a_missing_or_cut_file_is_named(folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()
    content = (folder / "__2_0.distcp").read_bytes()
    (folder / "__2_0.distcp").write_bytes(content[:4000])
    with pytest.raises(PartialModelError, match="missing or too short") as caught:
        read_checkpoint(folder)
    assert caught.value.details[0] == "__1_0.distcp is missing"
    assert re.fullmatch(r"__2_0\.distcp has 4,000 of [\d,]+ bytes", caught.value.details[1])


def test_what_is_missing_of_the_optimizer_leaves_the_weights_readable(tmp_path: Path) -> None:
    groups = [{"lr": torch.tensor(0.1), "params": list(STATE)}]
    state = {"model": STATE, "optimizer": {"state": {}, "param_groups": groups}}
    writer = FileSystemWriter(tmp_path / "m", single_file_per_rank=False)
    dcp.save({**state, "train_state": {"step": torch.tensor(7)}}, storage_writer=writer, no_dist=True)
    metadata = pickle.loads((tmp_path / "m" / ".metadata").read_bytes())
    assert read_checkpoint(tmp_path / "m").train_step == 7
    for index, place in metadata.storage_data.items():
        if not index.fqn.startswith("model."):
            (tmp_path / "m" / place.relative_path).unlink()
    require_equal(tmp_path / "m", STATE)
    checkpoint = read_checkpoint(tmp_path / "m")
    assert checkpoint.train_step is None
    assert all(group.learning_rate is None for group in checkpoint.optimizer_groups)


def test_a_folder_without_its_metadata_is_still_being_written(folder: Path) -> None:
    (folder / ".metadata").rename(folder / ".metadata.tmp")
    with pytest.raises(PartialModelError, match=r"without its \.metadata: it is still being written"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata"])
def test_a_file_of_the_folder_names_the_folder(name: str, written: Path) -> None:
    with pytest.raises(PartialModelError) as caught:
        read_checkpoint(written / name)
    assert caught.value.advice == f"ssmdiag inspect {written}"


def test_cut_metadata_is_refused(folder: Path) -> None:
    content = (folder / ".metadata").read_bytes()
    for length in (0, 1, 2, 11, 100, len(content) // 2, len(content) - 1):
        (folder / ".metadata").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"step-700/\.metadata"):
            read_checkpoint(folder)


def test_safetensors_inside_is_refused_as_torch_refuses_it(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path / "m", serialization_format=SerializationFormat.SAFETENSORS)
    dcp.save({"model": STATE}, storage_writer=writer, no_dist=True)
    with pytest.raises(CheckpointError, match="serialization_format=SAFETENSORS") as caught:
        read_checkpoint(tmp_path / "m")
    assert "HuggingFaceStorageWriter" in str(caught.value.advice)


class Call:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ran",)


def test_code_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    forge(folder, lambda metadata: setattr(metadata, "planner_data", Call()))
    with pytest.raises(UnsafePickleError, match=r"calls for posix\.system"):
        read_checkpoint(folder)
    assert not (folder / "ran").exists()


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = one_rank(tmp_path / "m", {"model": {"a\x1b[31m\n.A_log": torch.ones(3)}})
    next(folder.glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    assert "\x1b" not in str(caught.value)


def test_weights_that_are_no_numbers_are_read(tmp_path: Path) -> None:
    state = {**STATE, "layers.0.mixer.D": torch.full((10,), torch.nan)}
    checkpoint = read_checkpoint(one_rank(tmp_path / "m", {"model": state}))
    assert checkpoint["layers.0.mixer.D"].load().isnan().all()


def test_a_long_table_of_chunks_is_announced(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "ssmdiag.progress"):
        read_checkpoint(folder)
        assert "table of chunks" not in caplog.text
        monkeypatch.setattr(dcp_metadata, "LONG_METADATA", 10)
        monkeypatch.setattr(logging.getLogger("ssmdiag.progress"), "propagate", True)
        read_checkpoint(folder)
    assert "reading the table of chunks of step-700/.metadata" in caplog.text
