"""Diagnosis → text, one file per format. `FORMATS` is found by looking: a module here with `render_all`.

A format that is one piece after another also has `render_each`, so that each can be shown as soon as it is there.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from ssmdiag.errors import Failure
from ssmdiag.printable import harmless, printable_record
from ssmdiag.reports.interface import Settings

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

__all__ = ["Failure", "Settings", "declares", "formats", "render", "render_each"]

MACHINERY = frozenset(
    {
        "answer",
        "capacity_text",
        "check_text",
        "console",
        "finding_lines",
        "folding",
        "grouping",
        "interface",
        "kernel_text",
        "pictures",
        "several",
        "summary",
        "words",
    }
)
"""Modules of this package that are not formats of a diagnosis; nor are its packages."""
NUMBERS = frozenset({"csv", "svg"})
"""Formats of numbers alone, or of one picture: they do not say what was found."""


def formats() -> tuple[str, ...]:
    """Return the names of all formats that say what was found."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return tuple(sorted(name for name in modules if name not in MACHINERY | NUMBERS))


def declares(format: str, what: Literal["EXACT", "COMMANDS", "TAILS"]) -> bool:
    """Return whether a format has a property; `interface` says which there are."""
    return bool(getattr(_module(format), what, False))


def render(results: Sequence[Diagnosis | Failure], format: str, settings: Settings) -> str:
    """Return one text for all results, ending in a newline.

    Raises ValueError for a format that does not exist.
    """
    module = _module(format)
    text = module.render_all(results if declares(format, "EXACT") else printable_record(results), settings)
    return harmless(text, colours=settings.colour, commands=declares(format, "COMMANDS"))


def render_each(results: Iterable[Diagnosis | Failure], format: str, settings: Settings) -> Iterator[str]:
    """Yield the text of `render` piece by piece: each result's as soon as it comes, in formats that are a sequence.

    Raises ValueError for a format that does not exist.
    """
    module = _module(format)
    if not hasattr(module, "render_each"):
        yield render(list(results), format, settings)
        return
    exact = declares(format, "EXACT")
    for piece in module.render_each(results if exact else map(printable_record, results), settings):
        yield harmless(piece, colours=settings.colour)


def _module(format: str) -> ModuleType:
    if format not in formats() and format not in NUMBERS:
        raise ValueError(f"unknown format {format!r}; expected one of {', '.join(formats())}")
    return importlib.import_module(f"{__name__}.{format}")
