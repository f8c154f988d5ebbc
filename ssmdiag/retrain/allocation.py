"""Memory that a training step frees is there for the next one, instead of going back to the system."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of mallopt(3)."""
FROM_HEAP = 32 << 20
"""Largest block taken from the heap: glibc allows no more."""
KEPT = 512 << 20
"""Most that stays free at the end of the heap."""


def keep_freed_memory() -> bool:
    """Tell the C library to keep what is freed, for the rest of the process; return whether it does.

    glibc returns blocks of megabytes to the system and asks for them again in the next step, page by page: a
    quarter of the time of a step of the built-in model. For programs, not for libraries.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP_THRESHOLD, FROM_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))
