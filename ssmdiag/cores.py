"""Work on many channels, shared between the processor's cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor


def orthogonal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q and R of many small matrices, (…, row, column), on one thread.

    torch factorises a batch one matrix after another, and LAPACK's threads cost twenty times what such a matrix takes.
    """
    with _one_thread():
        Q, R = torch.linalg.qr(rows)
    return Q, R


def triangular(rows: Tensor) -> Tensor:
    """Return R alone."""
    with _one_thread():
        return torch.linalg.qr(rows, mode="r").R


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Have memory that was freed kept for what comes next, where the C library is glibc.

    It gives blocks back to the system until a larger one has come and gone, up to 32 MiB; cleared pages then cost more
    than the arithmetic on them.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def share_out(work: Callable[[int], None], pieces: Sequence[int], threads: int) -> None:
    """Do the pieces on as many cores as torch uses: a piece to a core, which torch then does not split.

    Split between cores, operations as small as these spend half their time waiting for each other.
    """
    keep_freed_memory()
    if threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, pieces):
                pass
    finally:
        # The number is each thread's own, but new threads start with the one set last.
        torch.set_num_threads(threads)
