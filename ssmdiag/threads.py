"""Pieces of work shared between cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def share_out(work: Callable[[Piece], None], pieces: Sequence[Piece], device: torch.device) -> None:
    """Do the pieces on as many cores as torch uses: a piece to a core, which torch then does not split.

    Split between cores, operations as small as these spend half their time waiting for each other.
    On other devices than the CPU the pieces come one after another.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
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
