"""What `ssmdiag retrain` shows while it trains."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ssmdiag.cli import terminal
from ssmdiag.printable import harmless, printable

if TYPE_CHECKING:
    from rich.live import Live

    from ssmdiag.retrain.training import Progress

BETWEEN_LINES = 15.0
"""Seconds between lines of progress where stderr is no terminal."""


class Watch:
    """Losses of the arms while they train: a table that is redrawn in a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.said = time.monotonic()
        self.live: Live | None = None

    def update(self, progress: Progress) -> None:
        if self.quiet:
            return
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            if self.live is None:
                self.live = Live(console=Console(file=terminal.drawing()), transient=True, refresh_per_second=4)
                self.live.start()
            self.live.update(Text(harmless(_picture(progress))))
        elif time.monotonic() - self.said >= BETWEEN_LINES:
            self.said = time.monotonic()
            terminal.remark(printable(_line(progress)))

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None


def _line(progress: Progress) -> str:
    from ssmdiag.reports.retrain.words import loss

    losses = ", ".join(
        f"{arm.label} {loss(value)}" for arm, value in list(zip(progress.arms, progress.losses, strict=True))[:6]
    )
    more = f" and {len(progress.arms) - 6} more" if len(progress.arms) > 6 else ""
    return f"step {progress.step:,} of {progress.steps:,}: {losses}{more}"


def _picture(progress: Progress) -> str:
    from ssmdiag.reports.retrain.words import loss

    share = progress.step / max(progress.steps, 1)
    bar = "█" * round(30 * share) + "·" * (30 - round(30 * share))
    rows = [
        f"  {arm.label:<40} {loss(value) if value == value else 'diverged'}"
        for arm, value in list(zip(progress.arms, progress.losses, strict=True))[:16]
    ]
    return "\n".join([f"{bar} step {progress.step:,} of {progress.steps:,}", *rows])
