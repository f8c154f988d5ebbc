"""Ctrl-C and kill, held back until a step is done: half an optimiser step is no state to resume from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.retrain.arms import Arm
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


def ending_signals() -> list[int]:
    """Return the signals that end training after the current step: those that this process does not ignore."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


def signal_of(error: KeyboardInterrupt) -> int:
    """Return the signal behind an interruption; Ctrl-C's by default."""
    return error.number if isinstance(error, InterruptedTraining) else signal.SIGINT


@contextmanager
def keeping_what_is_known(
    known: Mapping[Arm, ArmResult], arms: Sequence[Arm], answer: Callable[[], RetrainResult]
) -> Iterator[None]:
    """Raise InterruptedTraining with the arms that were begun where Ctrl-C or a kill comes inside.

    `known` collects the finished arms inside; `answer` returns their comparison.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        half = {arm.arm: arm for arm in stop.arms} if isinstance(stop, InterruptedTraining) else {}
        there = {**known, **half}
        whole = answer()
        left = [arm.label for arm in arms if arm not in there]
        steps = [arm.interrupted_at for arm in half.values() if arm.interrupted_at is not None]
        result = replace(
            whole,
            arms=tuple(there[arm] for arm in arms if arm in there),
            notes=(*whole.notes, *[f"not begun: {', '.join(left[:6])}{', …' * (len(left) > 6)}"] * bool(left)),
            interrupted_at=max(steps, default=whole.budget.steps if there else 0),
        )
        raise InterruptedTraining(signal_of(stop), tuple(half.values()), result) from None


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

    before = {number: signal.signal(number, note) for number in ending_signals()}
    try:
        yield lambda: first[0][1] if first else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
