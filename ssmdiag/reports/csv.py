"""Layers as comma-separated values, a row each, for spreadsheets and data frames: numbers in full, unknown is empty."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import Failure
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import document

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

PLAIN = (
    "name", "family", "time_invariant", "channels", "modes", "taps", "dtype", "spectral_radius", "margin",
    "nonfinite_modes", "unstable_modes", "marginal_modes",
)  # fmt: skip
QUANTILES = ("rate", "half_life", "time_constant", "horizon")
LAW = ("law", "exponent", "rate", "offset")
HEADS = (
    "checkpoint", "train_step", "context_length", *PLAIN,
    *(f"{name}_{part}" for name in QUANTILES for part in ("min", "p05", "median", "p95", "max")),
    *(f"decay_{name}" for name in LAW), "error",
)  # fmt: skip


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return a row of names, then a row for each layer of each checkpoint; one for a checkpoint that was not read."""
    text = io.StringIO()
    table = csv.DictWriter(text, HEADS, lineterminator="\n")
    table.writeheader()
    for result in results:
        for row in rows_of(document(result)):
            table.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def rows_of(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the row of each layer in a document; of a checkpoint that was not read, one with its error."""
    where = {"checkpoint": data["checkpoint"]["path"]}
    if "error" in data:
        yield where | {"error": data["error"]["seen"]}
        return
    where |= {"train_step": data["checkpoint"]["train_step"], "context_length": data["context_length"]}
    for layer in data["layers"]:
        row = where | {name: layer[name] for name in PLAIN}
        for name in QUANTILES:
            row |= {f"{name}_{part}": value for part, value in (layer[name] or {}).items()}
        law = layer["decay"]["layer"] if layer["decay"] else {}
        yield row | {f"decay_{name}": law.get(name) for name in LAW}


def _cell(value: Any) -> Any:
    """Return a cell; an apostrophe keeps a text that begins like a formula from being one."""
    if isinstance(value, str) and value not in ("inf", "-inf"):
        return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
    return value
