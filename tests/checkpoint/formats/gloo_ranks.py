"""A program for torch.distributed.run: all ranks save their shards, with each of torch's writers and async_save."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests.checkpoint.formats.distributed_files import WRITERS, mamba


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    dist.init_process_group("cpu:gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for dim in (0, 1):
        shards = {
            name: distribute_tensor(value, mesh, [Shard(min(dim, value.ndim - 1))]) for name, value in mamba().items()
        }
        for name, writer in WRITERS.items():
            dcp.save({"model": shards}, storage_writer=writer(folder / f"{name}, axis {dim}"))
        dcp.async_save({"model": shards}, checkpoint_id=folder / f"async, axis {dim}").result()  # type: ignore[union-attr]
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
