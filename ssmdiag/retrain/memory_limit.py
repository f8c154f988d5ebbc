"""When a step does not fit in memory: how many arms, or sequences, do, found by trying."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ssmdiag.errors import SsmdiagError

_WORDS = ("not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("sizes do not match"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


@contextmanager
def saying_what_fits(attempt: Callable[[int, int], object], arms: int, batch: int, device: str) -> Iterator[None]:
    """Raise SsmdiagError with what would fit where memory runs out inside.

    `attempt` takes a number of arms and of sequences and does a step with so many, for nothing.
    """
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate (\d[\d.]* \w+)", str(error), re.IGNORECASE)
        # Its frames hold the tensors that filled the memory, and it is alive as long as the caller handles it.
        traceback.clear_frames(error.__traceback__)
    gc.collect()
    raise SsmdiagError(
        f"out of memory on {device} with {arms:,} arm{'s' * (arms != 1)} together and {batch:,} sequences a step"
        f"{f', at a tensor of {asked[1]}' if asked else ''}.",
        advice=_advice(attempt, arms, batch),
    )


def _advice(attempt: Callable[[int, int], object], arms: int, batch: int) -> str:
    """Return what was tried and fitted: fewer arms together change no result, fewer sequences do."""
    for some in _halves(arms):
        if _fits(attempt, some, batch):
            return f"--together {some} fits: a step of {some} was tried."
    for some in _halves(batch):
        if _fits(attempt, arms, some):
            return f"--batch {some} fits: a step of it was tried."
    for some in _halves(batch):
        if _fits(attempt, 1, some):
            return f"--batch {some} --together 1 fits: a step of it was tried."
    return "not even one sequence of one arm fits: a smaller --width, --modes, --depth or --length."


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _fits(attempt: Callable[[int, int], object], arms: int, batch: int) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        attempt(arms, batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
