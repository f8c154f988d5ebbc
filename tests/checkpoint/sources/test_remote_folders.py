"""Folders of several ranks in a bucket, in a repository of the hub and on a server that lists nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.location import locate
from ssmdiag.checkpoint.sources import buckets, http, ranged
from ssmdiag.errors import CheckpointError, PartialModelError, RemoteError
from ssmdiag.reports.json import document
from tests.checkpoint.formats.distributed_files import WRITERS, mamba, save, sharded
from tests.checkpoint.sources.stand_in import StandIn

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
STATE = mamba() | {"embedding.weight": torch.rand(600, 400)}
PLACES = ("memory", "http", "hf")
LISTED = ("memory", "hf")
"""Those that say what is in a folder."""
Serve = Callable[[Path, str], str]


@pytest.fixture
def serve(hub: StandIn) -> Iterator[Serve]:
    """Return a function that puts a folder below what is served, and returns its address in a place."""
    memory = fsspec.filesystem("memory")

    def served(folder: Path, place: str) -> str:
        path = folder.relative_to(hub.root).as_posix()
        for file in (file for file in folder.rglob("*") if file.is_file()):
            memory.pipe_file(f"/bucket/{file.relative_to(hub.root)}", file.read_bytes())
        return {"memory": f"memory://bucket/{path}", "http": f"{hub.url}/files/{path}/", "hf": f"hf://{path}"}[place]

    yield served
    memory.store.clear()


def state_of(rank: int) -> dict[str, Any]:
    groups = {
        f"param_groups.{name}.{key}": value for name in STATE for key, value in {"lr": 1e-3, "betas": 0.9}.items()
    }
    moments = {f"state.{name}.exp_avg": value.float() for name, value in STATE.items()}
    step = {"step": torch.tensor(1234, dtype=torch.int32)}
    return {"model": sharded(STATE, rank, 3), "optimizer": {**sharded(moments, rank, 3), **groups}, "train_state": step}


@pytest.fixture
def folder(hub: StandIn) -> Path:
    """Return a folder of three ranks as torchtitan leaves it, below what is served."""
    path = hub.root / "org" / "run"
    save(path, state_of, 3)
    (path / "config.json").write_text('{"model_type": "mamba", "max_position_embeddings": 512}')
    return path


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small files as far apart in requests as large ones."""
    for module in (http, buckets):
        monkeypatch.setattr(module, "HEAD", 300)
    for name, size in {"TAIL": 200, "GAP": 2000, "AHEAD": 64}.items():
        monkeypatch.setattr(ranged, name, size)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("small_pieces")
def test_a_distributed_folder_is_read_as_from_the_disk(place: str, ahead: bool, folder: Path, serve: Serve) -> None:
    here, there = read_checkpoint(folder), read_checkpoint(serve(folder, place))
    if ahead:
        there.prefetch(there)
    assert list(here) == list(there)
    for name, value in STATE.items():
        assert torch.equal(there[name].load(), value), name
    assert (there.train_step, there.size, there.format) == (1234, here.size, here.format)
    assert there.notes == here.notes == ()
    assert there.optimizer_groups == here.optimizer_groups
    assert {group.learning_rate for group in there.optimizer_groups} == {1e-3}


@pytest.mark.parametrize("place", PLACES)
def test_a_distributed_folder_is_diagnosed_as_on_the_disk(place: str, folder: Path, serve: Serve) -> None:
    of_one_place = ("checkpoint", "source", "seconds")
    one, other = (document(diagnose(path)) for path in (folder, serve(folder, place)))
    assert {k: v for k, v in one.items() if k not in of_one_place} == {
        k: v for k, v in other.items() if k not in of_one_place
    }
    assert 0 < other["source"]["bytes"] < read_checkpoint(folder).size


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.usefixtures("small_pieces")
def test_what_is_announced_comes_in_few_requests(place: str, writer: str, hub: StandIn, serve: Serve) -> None:
    """A_log and D of both layers lie side by side in a rank's file; loading them then asks nothing."""
    path = hub.root / "org" / "run"
    save(path, lambda rank: {"model": sharded(STATE, rank, 3)}, 3, WRITERS[writer])
    where = locate(serve(path, place))
    checkpoint = read_checkpoint(where)
    wanted = [name for name in STATE if name.endswith(("A_log", "D"))]
    traffic = where.place.traffic  # type: ignore[union-attr]
    before = traffic.bytes
    checkpoint.prefetch(wanted)
    files = {chunk.place.file for name in wanted for chunk in container_of(checkpoint)._tensor(f"model.{name}").chunks}
    requests = traffic.requests
    for name in wanted:
        assert torch.equal(checkpoint[name].load(), STATE[name])
    assert traffic.bytes - before < 0.1 * checkpoint.size
    assert traffic.requests - requests <= 2 * len(files)
    again = traffic.requests
    for name in wanted:
        checkpoint[name].load()
    assert traffic.requests == again


def container_of(checkpoint: Any) -> Any:
    return next(iter(checkpoint.values())).container


@pytest.mark.parametrize("place", PLACES)
def test_a_missing_file_is_named(place: str, folder: Path, serve: Serve) -> None:
    (folder / "__1_0.distcp").unlink()
    address = serve(folder, place)
    if place in LISTED:
        with pytest.raises(PartialModelError) as refused:
            read_checkpoint(address)
        assert refused.value.details == ("__1_0.distcp is missing",)
    else:
        with pytest.raises(RemoteError, match=r"__1_0\.distcp does not exist \(status 404\)"):
            read_checkpoint(address)["layers.0.mixer.A_log"].load()


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_is_too_short_is_named(place: str, folder: Path, serve: Serve) -> None:
    content = (folder / "__2_0.distcp").read_bytes()
    (folder / "__2_0.distcp").write_bytes(content[:4000])
    checkpoint = read_checkpoint(serve(folder, place))
    checkpoint.prefetch(["embedding.weight"])
    with pytest.raises(CheckpointError, match=r"embedding\.weight cannot be read \(__2_0\.distcp ends before byte"):
        checkpoint["embedding.weight"].load()


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_without_its_metadata_is_no_checkpoint(place: str, folder: Path, serve: Serve) -> None:
    (folder / ".metadata").unlink()
    says = r"without its \.metadata" if place in LISTED else "is a directory without a checkpoint"
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(serve(folder, place))


@pytest.mark.parametrize("place", PLACES)
def test_accelerates_optimizer_is_found_in_the_folder_beside(place: str, hub: StandIn, serve: Serve) -> None:
    whole = hub.root / "org" / "run"
    groups = [{"lr": 0.25, "weight_decay": 0.5, "params": list(STATE)}]
    for name, state in {
        "pytorch_model_fsdp_0": {"model": STATE},
        "optimizer_0": {"optimizer": {"state": {}, "param_groups": groups}},
    }.items():
        dcp.save(state, storage_writer=FileSystemWriter(whole / name), no_dist=True)
    address = serve(whole, place)
    if place == "http":
        address += "pytorch_model_fsdp_0/"
    checkpoint = read_checkpoint(address)
    assert torch.equal(checkpoint["layers.0.mixer.A_log"].load(), STATE["layers.0.mixer.A_log"])
    assert [group.learning_rate for group in checkpoint.optimizer_groups] == [0.25]
    assert checkpoint.optimizer_notes == ()


@pytest.mark.parametrize("place", LISTED)
def test_rows_of_all_ranks_are_put_together(place: str, hub: StandIn, serve: Serve) -> None:
    path = hub.root / "org" / "run"
    files = {name: 1 + number % 2 for number, name in enumerate(STATE)}

    def writer(folder: Path) -> Any:
        return dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True, fqn_to_index_mapping=files)

    save(path, lambda rank: sharded(STATE, rank, 3), 3, writer)
    here, there = read_checkpoint(path), read_checkpoint(serve(path, place))
    there.prefetch(there)
    assert set(there) == set(STATE)
    assert all(torch.equal(there[name].load(), value) for name, value in STATE.items())
    assert (there.size, there.notes) == (here.size, here.notes)


@pytest.mark.parametrize("place", LISTED)
def test_megatrons_ranks_are_put_together(place: str, hub: StandIn, serve: Serve) -> None:
    path = hub.root / "org" / "run"
    whole = {"decoder.layers.0.mixer.A_log": torch.rand(8, 4), "decoder.layers.0.mixer.D": torch.rand(8)}
    for rank in range(2):
        (path / f"mp_rank_0{rank}").mkdir(parents=True)
        shares = {name: value.chunk(2)[rank].contiguous() for name, value in whole.items()}
        arguments = argparse.Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=1)
        content = {"model": shares, "args": arguments, "iteration": 100}
        torch.save(content, path / f"mp_rank_0{rank}" / "model_optim_rng.pt")
    here, there = read_checkpoint(path), read_checkpoint(serve(path, place))
    there.prefetch(there)
    assert all(torch.equal(there[name].load(), value) for name, value in whole.items())
    assert (there.size, there.train_step, there.format) == (here.size, 100, here.format)


def test_an_orbax_folder_is_read_from_this_machine_alone(hub: StandIn, serve: Serve) -> None:
    path = hub.root / "org" / "run"
    path.mkdir(parents=True)
    (path / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match="read from this machine alone") as refused:
        read_checkpoint(serve(path, "memory"))
    assert refused.value.advice == "download it, then inspect the copy."
