"""Results as pages of HTML, one module per command; a new kind of result is a line in `PAGES`."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ssmdiag.printable import printable_record

if TYPE_CHECKING:
    from ssmdiag.reports.drawing.picture import Picture
    from ssmdiag.reports.page.page import Page

PAGES = {
    "Diagnosis": "diagnosis",
    "RunComparison": "run",
    "ModelComparison": "models",
    "ModelTable": "models",
    "ConversionProof": "conversion",
    "CapacityReport": "capacity",
    "LayerCapacity": "capacity",
    "ProbedMemory": "probe",
    "RetrainResult": "retrain",
}
"""Results by the name of their class → the module here whose `page` makes their page."""


def page_of(result: Any, *arguments: Any, guess: str | None = None, command: str = "") -> Page:
    """Return the page of a result; `guess` warns that the whole of it rests on one."""
    page: Page = _module(result).page(*printable_record((result, *arguments)), command=command)
    if guess:
        page.warn(guess)
    return page


def main_picture_of(result: Any) -> Picture | None:
    """Return the one picture of a result; None where it has none."""
    draw = getattr(_module(result), "main_picture", None)
    return draw(printable_record(result)) if draw else None


def fragment(result: Any) -> str:
    """Return a result as a notebook shows it."""
    return page_of(result).fragment()


def _module(result: Any) -> ModuleType:
    return importlib.import_module(f"{__name__}.{PAGES[type(result).__name__]}")
