"""JSON lines: one compact object per checkpoint, for streams."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import document

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

EXACT = TAILS = True


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return one line per result."""
    return "".join(render_each(results, settings))


def render_each(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield the line of each result."""
    for result in results:
        yield json.dumps(document(result, settings.run), ensure_ascii=not settings.unicode) + "\n"
