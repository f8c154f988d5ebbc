"""Ranks that torchrun started: dividing work between them, summing over them, logging from rank 0.

    torchrun --nproc-per-node 2 -m ssmdiag retrain …

With more arms than ranks each rank trains its share of the arms. Else all ranks train each arm together: the batch is
that of one process, each rank computes a part of it, and gradients are summed (for a module by torch's
DistributedDataParallel), so that the losses agree to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssmdiag.errors import ConfigurationError, SsmdiagError

TIMEOUT = timedelta(minutes=10)
"""Longest wait for another rank within a step. The end of a rank is noticed at once; this is for one that hangs."""
LONG_TIMEOUT = timedelta(days=7)
"""Longest wait for the arms of another rank."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; `ALONE` where it is the only one."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this rank prints and writes for all."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return every `count`-th of the items, a share of them that is this rank's."""
        return list(items[self.rank :: self.count])

    def spreads(self, arms: Sequence[object]) -> bool:
        """Whether each rank is to train arms of its own: there are more of them than ranks."""
        return 1 < self.count < len(arms)

    def part(self, size: int) -> slice:
        """Return this rank's part of a batch of this size; all parts together are the batch, in order."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        if self.count == 1:
            return values
        total = values.detach().to(self.device, copy=True)
        dist.all_reduce(total)
        return total.to(values.device)

    def any(self, fact: bool) -> bool:
        """Whether the value is true on any rank."""
        return bool(self.sum(torch.tensor(float(fact)))) if self.count > 1 else fact

    def wrap(self, module: nn.Module, *, some_unused: bool = False) -> nn.Module:
        """Return a module whose gradients are means over ranks; itself where there is one rank."""
        if self.count == 1:
            return module
        # Importing it takes a second and a half, which one process need not spend.
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(module, find_unused_parameters=some_unused)

    def gather(self, item: Item) -> list[Item]:
        """Return every rank's item, in the order of ranks. Waits as long as the slowest takes."""
        if self.count == 1:
            return [item]
        gathered: list[Any] = [None] * self.count
        # gloo carries objects whatever the device, and has a timeout of its own here.
        group = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
        dist.all_gather_object(gathered, item, group=group)
        return gathered

    def require_same(self, what: str, value: object) -> None:
        """Raise ConfigurationError unless every rank has this value."""
        values = self.gather(repr(value))
        if len(set(values)) > 1:
            seen = "; ".join(f"rank {rank}: {other}" for rank, other in enumerate(values[:4]))
            raise ConfigurationError(
                f"{what}: not the same on all ranks ({seen}).",
                expected="the same files and the same random numbers on every rank",
            )


ALONE = Ranks()


@contextmanager
def joined(device: str = "cpu") -> Iterator[Ranks]:
    """Yield the ranks this process is one of, alone if nothing says otherwise.

    If any rank fails, the first to do so raises its error and every other exits with 2 silently: their errors would
    only report that the first one is gone. Ranks ended by a signal all end with its code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:  # set by torchrun, or what starts several processes like it
        yield Ranks(device=device)
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.startswith("cuda") and torch.cuda.is_available():
        device = f"cuda:{local % torch.cuda.device_count()}"
        torch.cuda.set_device(device)
    # NCCL allows one rank a GPU.
    enough = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
    backend = "nccl" if device.startswith("cuda") and enough else "gloo"
    try:
        store, rank, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise SsmdiagError(
            f"the ranks did not find each other ({type(error).__name__}: {error}).",
            expected="RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun sets them",
            advice="torchrun --nproc-per-node 2 -m ssmdiag retrain …",
        ) from error
    try:
        yield Ranks(rank, count, device)
    except BaseException as error:
        if _first_to_fail(store) or isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise SystemExit(2) from error
    dist.destroy_process_group()


def _first_to_fail(store: dist.Store) -> bool:
    try:
        return store.add("ssmdiag/failed", 1) == 1
    except dist.DistError:  # the store ended with the rank that failed
        return False
