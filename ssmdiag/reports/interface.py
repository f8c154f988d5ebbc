"""The contract of a report format: a module with `render_all(results, settings) -> str`.

Where the report is one piece after another, also `render_each(results, settings) -> Iterator[str]`: the same pieces,
each as soon as `results` yields what it is about. A module declares by a constant that is true

    EXACT       the format is read back: its own escapes keep every name exactly
    COMMANDS    it is a list of workflow commands, whose lines may begin with `::`
    TAILS       it has the law of the energy that remains, which is not computed for the others
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """How a report is to look. Formats take what applies to them."""

    width: int = 80
    """Columns."""
    colour: bool = False
    unicode: bool = True
    """False: only ASCII leaves the renderer."""
    plots: bool = True
    full: bool = False
    """True: every picture, law and capacity, and one report after another for several checkpoints."""
    several: bool = False
    """True: the results are of several checkpoints, so that a table of them can begin with the first."""
    all_layers: bool = False
    """True: layers that repeat are not folded."""
    quiet: bool = False
    """True: the answer alone."""
    verbose: bool = False
    """True: also full names and the tensors read."""
    command: str = ""
    """What was typed, for formats that say how they were made."""
    fail_on: str = "error"
    """Least severity that fails a check; for formats that say which findings do."""
    run: Mapping[str, Any] | None = None
    """What was asked for, of all that decides the results; for formats that are read back."""
