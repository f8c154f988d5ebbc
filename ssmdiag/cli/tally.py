"""How many checkpoints ended with each exit code, and the code of them all."""

from __future__ import annotations

import time
from collections import Counter

from ssmdiag.reports.words import plural


class Tally:
    """Counts what became of each checkpoint: clean (0), with findings that fail (1), not or partly read (2)."""

    def __init__(self) -> None:
        self.codes: Counter[int] = Counter()
        self.earlier = 0
        self.start = time.monotonic()

    def add(self, code: int, *, earlier: bool = False) -> None:
        """Count one checkpoint; `earlier`: an earlier run had done it."""
        self.codes[code] += 1
        self.earlier += earlier

    @property
    def code(self) -> int:
        """The exit code of all: that of the worst; 0 for none."""
        return max(self.codes, default=0)

    def sentence(self, failing: str | None) -> str:
        """Return one line on all of them; `failing` says which findings fail."""
        parts = [
            f"{self.codes[1]:,} with findings ({failing} or worse)" if failing else "",
            f"{self.codes[2]:,} not read, or not wholly",
            f"{self.earlier:,} of them by an earlier run" if self.earlier else "",
            f"{time.monotonic() - self.start:,.1f} s",
        ]
        return f"{plural(self.codes.total(), 'checkpoint')}: {', '.join(part for part in parts if part)}."
