"""Work on many channels, shared between the processor's cores.

torch splits an operation between threads that wait for each other at its end. Where another process holds a core, each
of them waits until the system gives that core back: 4 ms, for operations of 0.1. So everything here runs on one thread,
and it is whole pieces of work that go to the cores: only after the last of them does anything wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

PIECES = 4
"""Pieces of work for each core: a core that is busy with something else does fewer of them."""
_held = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch's operations on the thread they are called from; `share_out` goes on using all cores.

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
    """Return how many pieces of work on a device go on at a time: torch's number of threads, and one off the CPU."""
    return getattr(_held, "cores", torch.get_num_threads()) if device.type == "cpu" else 1


def share_out(work: Callable[[int], None], pieces: Sequence[int], device: torch.device) -> None:
    """Do the pieces on as many cores as torch uses, each of them on one thread."""
    keep_freed_memory()
    cores = min(cores_for(device), len(pieces))
    with one_thread():
        if cores < 2:
            for piece in pieces:
                work(piece)
            return
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, pieces):
                pass


def orthogonal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and R of many small matrices, (…, row, column), on one thread.

    torch factorises a batch one matrix after another, and LAPACK's threads cost twenty times what such a matrix takes.
    """
    with one_thread():
        Q, R = torch.linalg.qr(rows)
    return Q, R


def triangular(rows: Tensor) -> Tensor:
    """Return R alone."""
    with one_thread():
        return torch.linalg.qr(rows, mode="r").R


def singular_values(matrices: Tensor) -> Tensor:
    """Return the singular values of each matrix, (matrix, value); NaN where its numbers are beyond float64.

    LAPACK refuses all matrices for one that is not finite.
    """
    finite = matrices.isfinite().flatten(1).all(1)
    return torch.linalg.svdvals(matrices.where(finite[:, None, None], 0.0)).where(finite[:, None], torch.nan)


def keep_freed_memory() -> None:
    """Have memory that was freed kept for what comes next, where the C library is glibc.

    It gives blocks back to the system until a larger one has come and gone, up to 32 MiB; cleared pages then cost more
    than the arithmetic on them.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)
