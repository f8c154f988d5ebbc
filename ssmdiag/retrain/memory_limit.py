"""What to do when memory runs out: how many arms or sequences fit, found by trying, or what to lower."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import torch

from ssmdiag.errors import SsmdiagError

UNKNOWN = 4 << 30
"""Bytes assumed to be free where the system does not say."""
_WORDS = (
    "not enough memory", "can't allocate memory", "out of memory", "cannot allocate memory",
    "storage size calculation overflowed",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on a GPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("sizes do not match"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def saying_what_fits(
    attempt: Callable[[int, int], object],
    arms: int,
    batch: int,
    device: str,
    smaller: str = "a smaller --width, --modes, --depth or --length.",
) -> AbstractContextManager[None]:
    """Raise SsmdiagError with what would fit where memory runs out inside.

    `attempt` tries a step with a number of arms and of sequences and discards it; `smaller` is the advice where
    nothing fits.
    """
    what = f"on {device} with {arms:,} arm{'s' * (arms != 1)} together and {batch:,} sequences a step"
    return saying_what_to_lower(what, lambda: _advice(attempt, arms, batch, smaller))


@contextmanager
def saying_what_to_lower(what: str, advice: str | Callable[[], str]) -> Iterator[None]:
    """Raise SsmdiagError with advice where memory runs out inside; `what` says on what or with what."""
    try:
        yield
        return
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        asked = re.search(r"tried to allocate (\d[\d.]* \w+)", str(error), re.IGNORECASE)
        # Its frames hold the tensors that filled the memory as long as the caller handles it.
        traceback.clear_frames(error.__traceback__)
    gc.collect()
    raise SsmdiagError(
        f"out of memory {what}{f', at a tensor of {asked[1]}' if asked else ''}.",
        advice=advice if isinstance(advice, str) else advice(),
    )


def free_memory() -> int:
    """Return how many bytes this process may still use: those of the machine, or fewer under a limit."""
    free: list[int] = []
    with suppress(OSError, ValueError, ImportError):
        import resource  # not on Windows

        page = resource.getpagesize()
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        free += [int(available[1]) << 10] if available else []
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * page
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        free += [limit - used] * (limit != resource.RLIM_INFINITY)
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        most, current = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        free += [int(most) - int(current)]
    return max(0, min(free, default=UNKNOWN))


def _advice(attempt: Callable[[int, int], object], arms: int, batch: int, smaller: str) -> str:
    """Return what was tried and fitted: fewer arms together change no result, fewer sequences do."""
    fewer = (
        *((some, batch, f"--together {some}") for some in _halves(arms)),
        *((arms, some, f"--batch {some}") for some in _halves(batch)),
        *((1, some, f"--batch {some} --together 1") for some in _halves(batch)),
    )
    for together, sequences, options in fewer:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(together, sequences)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return f"{options} fits: a step of it was tried."
    return f"not even one sequence of one arm fits: {smaller}"


def _halves(number: int) -> list[int]:
    """Return the number halved once, twice, and so on down to 1."""
    return [number >> k for k in range(1, number.bit_length())]
