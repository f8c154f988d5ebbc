"""The one picture of a checkpoint as a file: its farthest kernel with the laws, else its time constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure, OutputError
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.page.diagnosis import main_picture
from ssmdiag.reports.page.page import in_references

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.drawing.picture import Picture


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the picture. Raises OutputError for several checkpoints, and where there is nothing to draw."""
    if len(results) != 1:
        raise OutputError(
            f"a picture is of one checkpoint, and there are {len(results):,}.", advice="write .html, which holds many."
        )
    (result,) = results
    drawn = alone(None if isinstance(result, Failure) else main_picture(result))
    return drawn if settings.unicode else in_references(drawn)


def alone(picture: Picture | None) -> str:
    """Return a picture as a file. Raises OutputError where there is none."""
    if picture is None:
        raise OutputError("there is nothing to draw.", advice="write .html or .json, which say why.")
    return picture.svg(alone=True)
