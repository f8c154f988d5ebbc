"""Folders of torch.distributed.checkpoint, written by torch's own planner and writer for several ranks in one process.

The ranks take turns under the process group "fake", which sends nothing: every rank cuts its own shard.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

Writer = Callable[[Path], FileSystemWriter]
WRITERS: Mapping[str, Writer] = {
    "a file per rank": FileSystemWriter,
    "a file per item": lambda folder: FileSystemWriter(folder, single_file_per_rank=False),
    "several threads": lambda folder: FileSystemWriter(folder, thread_count=3),
}


def mamba(layers: int = 2, prefix: str = "layers", seed: int = 0) -> dict[str, Tensor]:
    """Return the weights of Mamba layers of 10 channels, which few numbers of ranks divide."""
    draw = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for layer in range(layers):
        place = f"{prefix}.{layer}.mixer"
        state |= {
            f"{place}.A_log": torch.rand(10, 4, generator=draw).add(1).log(),
            f"{place}.D": torch.randn(10, generator=draw),
            f"{place}.dt_proj.bias": torch.randn(10, generator=draw).sub(4),
            f"{place}.dt_proj.weight": torch.randn(10, 3, generator=draw).bfloat16(),
            f"{place}.x_proj.weight": torch.randn(11, 10, generator=draw).half(),
            f"{place}.conv1d.weight": torch.randn(10, 1, 4, generator=draw),
        }
    return state


def sharded(state: Mapping[str, Tensor], rank: int, world: int, dim: int = 0) -> dict[str, Tensor]:
    """Return one rank's shards, along the last axis where a tensor has fewer axes."""
    mesh = init_device_mesh("cpu", (world,))
    shards: dict[str, Tensor] = {}
    for name, value in state.items():
        axis = min(dim, value.ndim - 1)
        parts = value.chunk(world, axis)
        local = parts[rank] if rank < len(parts) else value.narrow(axis, 0, 0)
        shards[name] = DTensor.from_local(
            local.contiguous(), mesh, [Shard(axis)], run_check=False, shape=value.shape, stride=value.stride()
        )
    return shards


def save(
    folder: Path, state: Callable[[int], Mapping[str, Any]], world: int, writer: Writer = FileSystemWriter
) -> None:
    """Write the folder that so many ranks write, each with the state that `state` returns for its number."""
    ranks: list[tuple[DefaultSavePlanner, FileSystemWriter]] = []
    plans = []
    for rank in range(world):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        try:
            planner, storage = DefaultSavePlanner(), writer(folder)
            storage.set_up_storage_writer(rank == 0)
            planner.set_up_planner(dict(state(rank)), storage.storage_meta(), rank == 0)
            plans.append(storage.prepare_local_plan(planner.create_local_plan()))
            ranks.append((planner, storage))
        finally:
            dist.destroy_process_group()
    plans, metadata = ranks[0][0].create_global_plan(plans)
    plans = ranks[0][1].prepare_global_plan(plans)
    results = [
        storage.write_data(planner.finish_plan(plan), planner).wait()
        for (planner, storage), plan in zip(ranks, plans, strict=True)
    ]
    ranks[0][1].finish(metadata, results)
