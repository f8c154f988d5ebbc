"""Work on many channels, shared between the processor's cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch


def share_out(work: Callable[[int], None], pieces: Sequence[int], threads: int) -> None:
    """Do the pieces on as many cores as torch uses: a piece to a core, which torch then does not split.

    Split between cores, operations as small as these spend half their time waiting for each other.
    """
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
