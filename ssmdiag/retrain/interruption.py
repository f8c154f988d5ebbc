"""Ctrl-C and kill, held back until a step is done: half an optimiser step is no state to resume from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.retrain.results import ArmResult, RetrainResult

IMPATIENT = 2.0
"""A second signal this many seconds after the first is not held back. torchrun sends its own right after Ctrl-C."""


class InterruptedTraining(KeyboardInterrupt):
    """Ctrl-C or a kill ended training; holds the results so far."""

    def __init__(
        self, number: int = signal.SIGINT, arms: tuple[ArmResult, ...] = (), result: RetrainResult | None = None
    ) -> None:
        super().__init__()
        self.number = number
        """The signal."""
        self.arms = arms
        """The arms that were being trained."""
        self.result = result
        """All arms that had begun."""


def signal_of(error: KeyboardInterrupt) -> int:
    """Return the signal behind an interruption; Ctrl-C's by default."""
    return error.number if isinstance(error, InterruptedTraining) else signal.SIGINT


@contextmanager
def on_ending_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Give Ctrl-C, kill and hang-up to a handler for a while, except those that this process ignores."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {
        number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


@contextmanager
def finishing_steps() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the signal that arrived, or 0; the caller must stop.

    Handlers are put back afterwards. Outside the main thread signals never arrive, and nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    first: list[tuple[float, int]] = []

    def note(number: int, frame: FrameType | None) -> None:
        if first and time.monotonic() - first[0][0] > IMPATIENT:
            raise InterruptedTraining(first[0][1])
        first.append((time.monotonic(), number))

    with on_ending_signals(note):
        yield lambda: first[0][1] if first else 0
