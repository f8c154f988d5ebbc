"""Numbers of steps and of other things as people write them: 4k, 1e6, 4,096."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import typer

_COUNT = re.compile(
    r"(?P<digits>-?(?:\d{1,3}(?:[,_]\d{3})+|\d{1,30})(?:\.\d{1,30})?)(?:e\+?(?P<power>\d{1,2}))?(?P<unit>[kmg]?)", re.I
)


def a_count(least: int = 1, *, context: bool = False) -> Callable[[str], int]:
    """Return what reads an option's count of `least` or more; with `context`, a length as models' names have it.

    >>> [a_count()(text) for text in ("4096", "4,096", "4k", "1e6", "1.5M")]
    [4096, 4096, 4000, 1000000, 1500000]
    >>> [a_count(context=True)(text) for text in ("4096", "4k", "128K", "1M", "1e6")]
    [4096, 4096, 131072, 1048576, 1000000]
    """
    unit = 1024 if context else 1000
    examples = f"such as 4096, 4k ({4 * unit:,}) or 1e6"

    def read(text: str) -> int:
        found = _COUNT.fullmatch(str(text).strip())
        if found is None:
            raise typer.BadParameter(f"{text} is no number; expected a whole one, {examples}.")
        size = Fraction(re.sub("[,_]", "", found["digits"])) * 10 ** int(found["power"] or 0)
        size *= unit ** " kmg".index(found["unit"].lower() or " ")
        if size.denominator != 1 or (context and found["unit"] and "." in found["digits"]):
            raise typer.BadParameter(f"{text} is no whole number; expected one, {examples}.")
        if size < least:
            raise typer.BadParameter(f"{text} is too small; expected {least:,} or more.")
        return int(size)

    return read
