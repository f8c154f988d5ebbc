"""Diagnosis → text, one file per format. `FORMATS` is found by looking: a module here with `render_all`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.printable import harmless, printable_record
from ssmdiag.reports.interface import Failure, Settings

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

__all__ = ["Failure", "Settings", "formats", "render"]

MACHINERY = frozenset(
    {"interface", "words", "console", "folding", "grouping", "pictures", "kernel_text", "check_text", "capacity_text"}
)
"""Modules of this package that are not formats of a diagnosis; nor are its packages."""
EXACT = frozenset({"json", "jsonl", "sarif"})
"""Formats that are read back: their own escapes keep every name exactly."""


def formats() -> tuple[str, ...]:
    """Return the names of all formats."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(sorted(name for name in modules if name not in MACHINERY))


def render(results: Sequence[Diagnosis | Failure], format: str, settings: Settings) -> str:
    """Return one text for all results, ending in a newline.

    Raises ValueError for a format that does not exist.
    """
    if format not in formats():
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(formats())}")
    if format not in EXACT:
        results = printable_record(results)
    text = importlib.import_module(f"{__name__}.{format}").render_all(results, settings)
    return harmless(text if text.endswith("\n") else text + "\n", colours=settings.colour, commands=format == "github")
