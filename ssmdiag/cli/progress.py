"""Progress of a command on stderr: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from ssmdiag.cli import terminal
from ssmdiag.printable import printable

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as Bar
    from rich.progress import TaskID

QUICK = 1.0
"""Seconds; what takes less shows nothing."""
BETWEEN_LINES = 10.0


class Progress:
    """How much of the work is done. Use it in a `with` statement; `update` after each part."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self.what = printable(what)
        self.quiet = quiet
        self.next = time.monotonic() + QUICK
        self.bar: Bar | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def of(self, what: str, done: int, total: int) -> None:
        """Show that so many parts of all are done of something that may be another than before."""
        if self.bar and self.task is not None and printable(what) != self.what:
            from rich.markup import escape

            self.bar.update(self.task, description=escape(printable(what)), total=total)
        self.what = printable(what)
        self.update(done, total)

    def update(self, done: int, total: int) -> None:
        """Show that so many parts of all are done."""
        if self.quiet or done == total:
            return
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=done)
        elif time.monotonic() < self.next:
            return
        elif sys.stderr.isatty():
            self._open(done, total)
        else:
            self.next = time.monotonic() + BETWEEN_LINES
            terminal.remark(f"{self.what}: {done} of {total} …")

    def _open(self, done: int, total: int) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress as Bar

        self.bar = Bar(console=Console(file=terminal.drawing()), transient=True)
        self.task = self.bar.add_task(escape(self.what), total=total, completed=done)
        self.bar.start()
