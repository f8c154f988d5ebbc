"""What a model's layers can rebuild of their input: verdict, table, heat map, and what another step would give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.console import joined, wrap
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import SCHEMA_VERSION, capacity_document, pick, plain
from ssmdiag.reports.pictures import heat_map

if TYPE_CHECKING:
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.capacity.report import CapacityReport
    from ssmdiag.recurrence.quantiles import Quantiles
    from ssmdiag.reports.interface import Settings


def report(path: str, layers: Sequence[CapacityReport], context: int, stated: bool, settings: Settings) -> str:
    """Return the report of one checkpoint."""
    path, layers = printable_record((path, layers))
    labels = label_layers([layer.name for layer in layers])
    families = ", ".join(dict.fromkeys(layer.family for layer in layers))
    where = f"context {context:,}" + ("" if stated else " (none is given: --length sets it)")
    head = f"{words.checkpoint_name(path)}  {families}  {words.plural(len(layers), 'layer')}  {where}"
    lines = [*wrap(head, settings), *wrap(answer(layers, labels), settings)]
    if not settings.quiet:
        lines += ["", *_table(layers, labels), ""]
        if settings.plots:
            lines += [*_heat(layers, labels, settings), ""]
        for layer, label in zip(layers, labels, strict=True):
            lines += _against_initial(layer, label) if layer is best(layers) else []
            lines += _other_steps(layer, label, settings)
        lines += [line for remark in remarks(layers, labels) for line in wrap(f"  {remark}", settings, hanging=1)]
    while not lines[-1]:
        lines.pop()
    return joined(lines, settings)


def document(path: str, layers: Sequence[CapacityReport], context: int) -> dict[str, Any]:
    """Return the same as plain data."""
    return plain({
        "schema_version": SCHEMA_VERSION,
        "checkpoint": {"path": path},
        "context_length": context,
        "layers": [
            {
                **pick(layer, "name family time_invariant channels modes"),
                "capacity": capacity_document(layer.own),
                "memory_function": [{"lag": lag, "value": value} for lag, value in layer.own.curve],
                "initialisations": {name: capacity_document(own) for name, own in layer.initial.items()},
                "step_factors": {f"{factor:g}": capacity_document(own) for factor, own in layer.steps.items()},
                **pick(layer, "recommended_step=wanted states_used"),
            }
            for layer in layers
        ],
    })  # fmt: skip


def answer(layers: Sequence[CapacityReport], labels: Sequence[str]) -> str:
    """Return how far back inputs can be rebuilt, and how many modes a rounded state leaves."""
    known = [layer for layer in layers if layer.own.length_half]
    nominal = "At the nominal point: " if any(not layer.time_invariant for layer in layers) else ""
    effective = [layer.own.effective_modes.median for layer in layers if layer.own.effective_modes]
    if not effective:
        return "No layer's capacity is known: its modes are NaN, growing, or beyond float64."
    modes = [layer.own.modes.median for layer in layers if layer.own.modes]
    least = "at least " if any(layer.own.is_bound for layer in layers) else ""
    rounded = f"modes survive rounding the state to {layers[0].own.state_dtype}"
    where = "in the median layer " if len(layers) > 1 else ""
    spent = f"{where}{least}{_middle(effective):.3g} of {_middle(modes):.0f} {rounded}"
    if not known:
        text = f"no channel rebuilds even its present input to one half; {spent}."
    else:
        farthest = best(layers)
        assert farthest.own.length_half is not None
        label, length = labels[list(layers).index(farthest)], farthest.own.length_half
        text = (
            f"inputs can be rebuilt to one half or better {words.steps(length.max)} steps back at most "
            f"(layer {label}), {words.steps(length.median)} in its median channel; {spent}."
        )
    return nominal + text if nominal else words.capitalised(text)


def best(layers: Sequence[CapacityReport]) -> CapacityReport:
    """Return the layer whose median channel rebuilds farthest."""
    return max(layers, key=lambda layer: _reach(layer.own))


def _reach(own: CapacitySummary) -> tuple[float, float]:
    return (own.length_half.median, own.length_half.max) if own.length_half else (-1.0, -1.0)


def _table(layers: Sequence[CapacityReport], labels: Sequence[str]) -> list[str]:
    """Return medians over channels; the longest channel beside."""
    rows = [
        ["", "channels", "length", "", "at", "held", "held", "accu-", "capacity", "modes", "states"],
        ["layer", "× modes", "median", "max", "0.1", "50 %", "90 %", "racy", "in context", "left", "used"],
    ]
    for layer, label in zip(layers, labels, strict=True):
        length, *others, left = _cells(layer.own)
        longest = words.steps(layer.own.length_half.max if layer.own.length_half else None)
        capacity = _digits(_median(layer.own.capacity))
        used = "–" if layer.states_used is None else f"{layer.states_used:.0f}"
        rows.append([label, f"{layer.channels:,} × {layer.modes}", length, longest, *others, capacity, left, used])
    known = [k for k in range(len(rows[0])) if any(row[k] not in ("–", "") for row in rows[2:])]
    return _aligned([[row[k] for k in known] for row in rows])


def _heat(layers: Sequence[CapacityReport], labels: Sequence[str], settings: Settings) -> list[str]:
    rows = {label: layer.own.curve for layer, label in zip(layers, labels, strict=True) if layer.own.curve}
    if not rows:
        return []
    caption = " memory function: how well the input so many steps ago can be rebuilt, mean over channels"
    return [*wrap(caption, settings, hanging=1), *heat_map(rows, settings)]


def _against_initial(layer: CapacityReport, label: str) -> list[str]:
    """Say what training made of the memory: the layer beside its family's initialisations."""
    if not layer.initial:
        return []
    rows = [[name, *_cells(own)] for name, own in {"this file": layer.own, **layer.initial}.items()]
    caption = f" layer {label} beside its family's initialisations, medians over channels (or over Δ)"
    return [caption, *_aligned([["", *_COMPARED], *rows], "   "), ""]


def _other_steps(layer: CapacityReport, label: str, settings: Settings) -> list[str]:
    lines = []
    if layer.steps:
        rows = [[f"{factor:g}", *_cells(own)] for factor, own in layer.steps.items()]
        lines += [f" layer {label} with its step Δ scaled: more length costs accuracy"]
        lines += [*_aligned([["Δ ×", *_COMPARED], *rows], "   "), ""]
    if layer.wanted:
        lines += [*wrap(f" layer {label}: {layer.wanted.sentence}", settings, hanging=1), ""]
    return lines


_COMPARED = ("length", "at 0.1", "held 50 %", "90 %", "accuracy", "modes left")
"""Columns of `_cells`."""


def _cells(own: CapacitySummary) -> list[str]:
    return [
        words.steps(_median(own.length_half)),
        words.steps(_median(own.length_tenth)),
        words.steps(_median(own.held_half)),
        words.steps(_median(own.held_nine_tenths)),
        _digits(_median(own.accuracy)),
        _digits(_median(own.effective_modes)),
    ]


def remarks(layers: Sequence[CapacityReport], labels: Sequence[str]) -> list[str]:
    """Return what was assumed, and what was left out."""
    said = [f"assumed: {sentence}" for sentence in dict.fromkeys(layer.own.assumes for layer in layers)]
    if bounds := [(own.swallowed or 0.0, k) for k, own in enumerate(layer.own for layer in layers) if own.is_bound]:
        share, most = max(bounds)
        where = f"{100 * share:.0f} % of the numbers of layer {labels[most]}{_others(len(bounds) - 1)}"
        said.append(
            f"rounding to {layers[most].own.state_dtype} swallows a tenth or more of what a step adds in {where}: they "
            "decay more slowly than the weights say, and the modes left are a bound from below, to 0.3 modes"
        )
    if sampled := [layer for layer in layers if layer.own.channels < layer.channels]:
        count = sampled[0].own.channels
        said.append(f"figures are of {count} channels a layer, the slowest among them: --every-channel")
    excluded: Counter[str] = Counter()
    for layer in layers:
        excluded.update(layer.own.excluded)
    said += [
        f"left out: {words.plural(count, 'mode')}, {reason.replace('_', ' ')}" for reason, count in (+excluded).items()
    ]
    if without := sum(layer.own.without_half for layer in layers):
        total = sum(layer.own.channels for layer in layers)
        said.append(f"{without:,} of {total:,} channels rebuild not even their present input to one half")
    if unknown := sum(layer.own.unknown for layer in layers):
        said.append(f"{words.plural(unknown, 'channel')} without an answer: NaN, growing, or a failed self-test")
    return said


def _others(count: int) -> str:
    return f", less in {count:,} others" if count > 1 else ", less in another" if count else ""


def _median(quantiles: Quantiles | None) -> float | None:
    return quantiles.median if quantiles else None


def _digits(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _aligned(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Return rows as lines: the first column begins at the left, the others end at the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, wide, strict=True)] for row in rows]
    return [indent + "  ".join([row[0].ljust(wide[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]
