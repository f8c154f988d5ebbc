"""What `ssmdiag retrain` shows while it trains."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ssmdiag.cli import terminal
from ssmdiag.printable import harmless, plural, printable

if TYPE_CHECKING:
    from rich.live import Live

    from ssmdiag.retrain.arms import Arm
    from ssmdiag.retrain.training import Progress

PRICED_AFTER = 20
"""Steps after which an estimate is told; `retrain.training.PRICED_AFTER`, which cannot be imported without torch."""
BETWEEN_LINES = 15.0
"""Seconds between lines of progress where stderr is no terminal."""


WORTH_TELLING = 20.0
"""Seconds; what takes less in all needs no estimate in a log."""


class Watch:
    """Losses of the arms while they train, and how long the rest takes.

    In a terminal a table that is redrawn; elsewhere one line with the estimate, then a line now and then. `arms` is how
    many are trained in all, group after group.
    """

    def __init__(self, quiet: bool, arms: int = 1) -> None:
        self.quiet = quiet
        self.said = time.monotonic()
        self.live: Live | None = None
        self.clock = Clock(arms)
        self.priced = False

    def update(self, progress: Progress) -> None:
        if self.quiet:
            return
        now = time.monotonic()
        self.clock.take(progress, now)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            if self.live is None:
                self.live = Live(console=Console(file=terminal.drawing()), transient=True, refresh_per_second=4)
                self.live.start()
            self.live.update(Text(harmless(_picture(progress, self.clock))))
            return
        if not self.priced and self.clock.steps_timed >= PRICED_AFTER:
            self.priced = True
            if self.clock.total >= WORTH_TELLING:
                self.said = now
                terminal.remark(self.clock.price(progress))
                return
        if now - self.said >= BETWEEN_LINES:
            self.said = now
            terminal.remark(printable(_line(progress, self.clock)))

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None


class Clock:
    """How long training takes, by the steps so far: an arm of another group takes as long as one of this."""

    def __init__(self, arms: int) -> None:
        self.arms = arms
        self.begun: float | None = None
        self.group: tuple[Arm, ...] = ()
        self.finished = 0
        """Arms of the groups before."""
        self.first_step, self.first_time = 0, 0.0
        self.steps_timed = 0
        self.left = self.total = 0.0
        """Seconds, of all arms."""
        self.step_seconds = 0.0
        """Seconds of one step of one arm."""

    def take(self, progress: Progress, now: float) -> None:
        """Take note of how far a group is."""
        if progress.arms != self.group:
            self.finished += len(self.group)
            self.group, self.first_step, self.first_time = progress.arms, progress.step, now
            self.begun = now if self.begun is None else self.begun
        self.steps_timed = progress.step - self.first_step
        if self.steps_timed > 0 and self.begun is not None:
            self.step_seconds = (now - self.first_time) / self.steps_timed / len(self.group)
            others = max(self.arms - self.finished - len(self.group), 0)
            steps = (progress.steps - progress.step) * len(self.group) + progress.steps * others
            self.left = self.step_seconds * steps
            self.total = now - self.begun + self.left

    def price(self, progress: Progress) -> str:
        """Return how long the whole takes, in a sentence."""
        steps = plural(progress.steps, "step")
        arms = f"{self.arms:,} arms of {steps}" if self.arms > 1 else steps
        return (
            f"{arms} at {1000 * self.step_seconds:,.3g} ms a step: about {duration(self.total)} in all, "
            f"{duration(self.left)} left; --steps or fewer arms shorten it"
        )


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it.

    >>> [duration(seconds) for seconds in (0.2, 48.3, 400, 8000, 400_000)]
    ['1 s', '48 s', '7 min', '2.2 h', '4.6 days']
    """
    if seconds < 100:
        return f"{max(round(seconds), 1)} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _left(clock: Clock) -> str:
    return f", about {duration(clock.left)} left" if clock.left else ""


def _line(progress: Progress, clock: Clock) -> str:
    from ssmdiag.reports.retrain.words import loss

    losses = ", ".join(
        f"{arm.label} {loss(value)}" for arm, value in list(zip(progress.arms, progress.losses, strict=True))[:6]
    )
    more = f" and {len(progress.arms) - 6} more" if len(progress.arms) > 6 else ""
    return f"step {progress.step:,} of {progress.steps:,}{_left(clock)}: {losses}{more}"


def _picture(progress: Progress, clock: Clock) -> str:
    from ssmdiag.reports.retrain.words import loss

    share = progress.step / max(progress.steps, 1)
    bar = "█" * round(30 * share) + "·" * (30 - round(30 * share))
    rows = [
        f"  {arm.label:<40} {loss(value) if value == value else 'diverged'}"
        for arm, value in list(zip(progress.arms, progress.losses, strict=True))[:16]
    ]
    return "\n".join([f"{bar} step {progress.step:,} of {progress.steps:,}{_left(clock)}", *rows])
