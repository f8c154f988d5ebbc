"""Ctrl-C and kill, held back until a step is done: half an optimiser step is no state to resume from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

IMPATIENT = 2.0
"""A second signal this many seconds after the first is not held back. torchrun sends its own right after Ctrl-C."""


@contextmanager
def finishing_steps() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether SIGINT or SIGTERM came; asked between steps, it is for the caller to stop.

    Handlers are put back afterwards. Outside the main thread signals never arrive, and nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    first: list[float] = []

    def note(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0] > IMPATIENT:
            raise KeyboardInterrupt
        first.append(time.monotonic())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(first)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
