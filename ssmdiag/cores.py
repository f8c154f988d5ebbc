"""Divides work on many channels between the processor's cores.

torch splits an operation between threads that wait for each other at its end. Where another process uses a core, all
of them wait until the system frees that core: 4 ms, for operations of 0.1 ms. So each operation here runs on one
thread, and the cores get whole pieces of work: the only wait is after the last piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
PIECES = 4
"""Pieces of work per core: a core that is busy with something else does fewer of them."""
_held = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch's operations on the calling thread only; `share_out` still uses all cores.

    Also a decorator.
    """
    threads, outermost = torch.get_num_threads(), not hasattr(_held, "cores")
    if outermost:
        _held.cores = threads
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if outermost:
            del _held.cores


def cores_for(device: torch.device) -> int:
    """Return how many pieces of work run at a time: torch's number of threads on a CPU, one on other devices."""
    return getattr(_held, "cores", torch.get_num_threads()) if device.type == "cpu" else 1


def share_out(work: Callable[[int], Result], pieces: Sequence[int], device: torch.device) -> list[Result]:
    """Do the pieces on as many cores as torch uses, each piece on one thread; return their results in order."""
    keep_freed_memory()
    cores = min(cores_for(device), len(pieces))
    with one_thread():
        if cores < 2:
            return [work(piece) for piece in pieces]
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, pieces))


def orthogonal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and R of many small matrices, (…, row, column), on one thread.

    torch factorises a batch one matrix after another, and LAPACK's threads cost twenty times as much as such a matrix.
    """
    with one_thread():
        Q, R = torch.linalg.qr(rows)
    return Q, R


def triangular(rows: Tensor) -> Tensor:
    """Return R alone."""
    with one_thread():
        return torch.linalg.qr(rows, mode="r").R


def singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values of each matrix, (matrix, value); NaN where a matrix is not finite.

    LAPACK refuses the whole batch if one matrix is not finite.
    """
    finite = matrices.isfinite().flatten(1).all(1)
    return torch.linalg.svdvals(matrices.where(finite[:, None, None], 0.0)).where(finite[:, None], torch.nan)


def keep_freed_memory() -> None:
    """Make glibc, where it is the C library, keep freed memory for later use.

    It returns a block to the system unless a larger one, up to 32 MiB, was freed before; clearing new pages then costs
    more than the arithmetic on them.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
