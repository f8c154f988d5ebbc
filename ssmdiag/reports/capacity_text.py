"""What a model's layers can rebuild of their input: verdict, table, heat map, and what another step would give."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.console import carried
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import SCHEMA_VERSION, capacity_document, plain
from ssmdiag.reports.pictures import heat_map

if TYPE_CHECKING:
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.recurrence.quantiles import Quantiles
    from ssmdiag.reports.interface import Settings


@dataclass(frozen=True)
class CapacityLayer:
    """One layer's capacity with what it is compared with."""

    name: str
    family: str
    time_invariant: bool
    channels: int
    modes: int
    own: CapacitySummary
    initial: Mapping[str, CapacitySummary] = field(default_factory=dict)
    """The same of the family's initialisations with as many modes, by name."""
    steps: Mapping[float, CapacitySummary] = field(default_factory=dict)
    """The same with Δ times each factor; for one layer, on request."""
    wanted: Mapping[str, Any] | None = None
    """Range of Δ for a wanted length, on request."""
    states_used: float | None = None
    """Median over channels of the states that pass on 99.9 % of the energy; None for selective layers."""


def report(path: str, layers: Sequence[CapacityLayer], context: int, stated: bool, settings: Settings) -> str:
    """Return the report of one checkpoint."""
    path, layers = printable_record((path, layers))
    labels = label_layers([layer.name for layer in layers])
    families = ", ".join(dict.fromkeys(layer.family for layer in layers))
    where = f"context {context:,}" + ("" if stated else " (none is given: --length sets it)")
    head = f"{words.checkpoint_name(path)}  {families}  {words.plural(len(layers), 'layer')}  {where}"
    lines = _wrap(head, settings)
    lines += _wrap(_answer(layers, labels), settings)
    if not settings.quiet:
        lines += ["", *_table(layers, labels), ""]
        if settings.plots:
            lines += [*_heat(layers, labels, settings), ""]
        for layer, label in zip(layers, labels, strict=True):
            lines += _against_initial(layer, label, settings) if layer is _best(layers) else []
            lines += _other_steps(layer, label, settings)
        lines += _remarks(layers, labels, settings)
    text = "\n".join(line.rstrip() for line in lines).rstrip() + "\n"
    return carried(text, settings)


def document(path: str, layers: Sequence[CapacityLayer], context: int) -> dict[str, Any]:
    """Return the same as plain data."""
    return plain({
        "schema_version": SCHEMA_VERSION,
        "checkpoint": {"path": path},
        "context_length": context,
        "layers": [
            {
                "name": layer.name, "family": layer.family, "time_invariant": layer.time_invariant,
                "channels": layer.channels, "modes": layer.modes, "capacity": capacity_document(layer.own),
                "memory_function": [{"lag": lag, "value": value} for lag, value in layer.own.curve],
                "initialisations": {name: capacity_document(own) for name, own in layer.initial.items()},
                "step_factors": {f"{factor:g}": capacity_document(own) for factor, own in layer.steps.items()},
                "recommended_step": layer.wanted, "states_used": layer.states_used,
            }
            for layer in layers
        ],
    })  # fmt: skip


def _answer(layers: Sequence[CapacityLayer], labels: Sequence[str]) -> str:
    known = [layer for layer in layers if layer.own.length_half]
    nominal = "At the nominal point: " if any(not layer.time_invariant for layer in layers) else ""
    effective = [layer.own.effective_modes.median for layer in layers if layer.own.effective_modes]
    if not effective:
        return "No layer has a memory to speak of: its modes are NaN, growing, or beyond float64."
    modes = [layer.own.modes.median for layer in layers if layer.own.modes]
    least = "at least " if any(layer.own.is_bound for layer in layers) else ""
    spent = f"{least}{_middle(effective):.3g} of {_middle(modes):.0f} modes survive a {layers[0].own.state_dtype} state"
    if not known:
        text = f"no channel rebuilds even its present input to one half; {spent}."
    else:
        best = _best(layers)
        assert best.own.length_half is not None
        assert best.own.accuracy is not None
        label = labels[list(layers).index(best)]
        text = (
            f"inputs can be rebuilt to one half or better {words.steps(best.own.length_half.max)} steps back at most "
            f"(layer {label}), {words.steps(best.own.length_half.median)} in its median channel; {spent}."
        )
    return nominal + text if nominal else text[0].upper() + text[1:]


def _best(layers: Sequence[CapacityLayer]) -> CapacityLayer:
    """Return the layer whose median channel rebuilds farthest."""
    return max(layers, key=lambda layer: _reach(layer.own))


def _reach(own: CapacitySummary) -> tuple[float, float]:
    return (own.length_half.median, own.length_half.max) if own.length_half else (-1.0, -1.0)


def _table(layers: Sequence[CapacityLayer], labels: Sequence[str]) -> list[str]:
    """Return medians over channels; the longest channel beside."""
    rows = [
        ["", "channels", "length", "", "at", "held", "held", "accu-", "capacity", "modes", "states"],
        ["layer", "× modes", "median", "max", "0.1", "50 %", "90 %", "racy", "in context", "left", "used"],
    ]
    for layer, label in zip(layers, labels, strict=True):
        own = layer.own
        rows.append([
            label,
            f"{layer.channels:,} × {layer.modes}",
            words.steps(_median(own.length_half)),
            words.steps(own.length_half.max if own.length_half else None),
            words.steps(_median(own.length_tenth)),
            words.steps(_median(own.held_half)),
            words.steps(_median(own.held_nine_tenths)),
            _digits(_median(own.accuracy)),
            _digits(_median(own.capacity)),
            _digits(_median(own.effective_modes)),
            "–" if layer.states_used is None else f"{layer.states_used:.0f}",
        ])  # fmt: skip
    used = [k for k in range(len(rows[0])) if any(row[k] not in ("–", "") for row in rows[2:])]
    wide = {k: max(len(row[k]) for row in rows) for k in used}
    return ["  ".join(row[k].ljust(wide[k]) if k == 0 else row[k].rjust(wide[k]) for k in used) for row in rows]


def _heat(layers: Sequence[CapacityLayer], labels: Sequence[str], settings: Settings) -> list[str]:
    rows = {label: layer.own.curve for layer, label in zip(layers, labels, strict=True) if layer.own.curve}
    if not rows:
        return []
    caption = " memory function: how well the input so many steps ago can be rebuilt, mean over channels"
    return [*_wrap(caption, settings), *heat_map(rows, settings)]


def _against_initial(layer: CapacityLayer, label: str, settings: Settings) -> list[str]:
    """Say what training made of the memory: the layer beside its family's initialisations."""
    if not layer.initial:
        return []
    lines = [f" layer {label} beside its family's initialisations, medians over channels (or over Δ)"]
    rows = [["", *_COMPARED]]
    for name, own in (("this file", layer.own), *layer.initial.items()):
        rows.append([name, *_cells(own)])
    return [*lines, *_aligned(rows), ""]


def _other_steps(layer: CapacityLayer, label: str, settings: Settings) -> list[str]:
    lines = []
    if layer.steps:
        lines += [f" layer {label} with its step Δ scaled: length is bought with accuracy"]
        rows = [["Δ ×", *_COMPARED]]
        rows += [[f"{factor:g}", *_cells(own)] for factor, own in layer.steps.items()]
        lines += [*_aligned(rows), ""]
    if layer.wanted:
        lines += [*_wrap(f" layer {label}: {layer.wanted['sentence']}", settings), ""]
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


def _remarks(layers: Sequence[CapacityLayer], labels: Sequence[str], settings: Settings) -> list[str]:
    assumed = dict.fromkeys(layer.own.assumes for layer in layers)
    remarks = [f"assumed: {sentence}" for sentence in assumed]
    bounds = [(own.swallowed or 0.0, k) for k, own in enumerate(layer.own for layer in layers) if own.is_bound]
    if bounds:
        share, most = max(bounds)
        where = f"{100 * share:.0f} % of the numbers of layer {labels[most]}{_others(len(bounds) - 1)}"
        remarks.append(
            f"rounding to {layers[most].own.state_dtype} swallows a tenth or more of what a step adds in {where}: they "
            "decay more slowly than the weights say, and the modes left are a bound from below, to 0.3 modes"
        )
    sampled = [layer for layer in layers if layer.own.channels < layer.channels]
    if sampled:
        count = sampled[0].own.channels
        remarks.append(f"figures are of {count} channels a layer, the slowest among them: --every-channel")
    reasons = dict.fromkeys(reason for layer in layers for reason in layer.own.excluded)
    counts = {reason: sum(layer.own.excluded.get(reason, 0) for layer in layers) for reason in reasons}
    excluded = {reason: count for reason, count in counts.items() if count}
    for reason, count in excluded.items():
        remarks.append(f"left out: {words.plural(count, 'mode')}, {reason.replace('_', ' ')}")
    without = sum(layer.own.without_half for layer in layers)
    if without:
        total = sum(layer.own.channels for layer in layers)
        remarks.append(f"{without:,} of {total:,} channels rebuild not even their present input to one half")
    unknown = sum(layer.own.unknown for layer in layers)
    if unknown:
        remarks.append(f"{words.plural(unknown, 'channel')} without an answer: NaN, growing, or a failed self-test")
    return [line for remark in remarks for line in _wrap(f"  {remark}", settings)]


def _others(count: int) -> str:
    return f", less in {count:,} others" if count > 1 else ", less in another" if count else ""


def _median(quantiles: Quantiles | None) -> float | None:
    return quantiles.median if quantiles else None


def _digits(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return [
        "   " + "  ".join(cell.ljust(wide[k]) if k == 0 else cell.rjust(wide[k]) for k, cell in enumerate(row))
        for row in rows
    ]


def _wrap(text: str, settings: Settings) -> list[str]:
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text.strip(), settings.width - 1, initial_indent=lead, subsequent_indent=lead + " " * bool(lead),
        break_on_hyphens=False,
    )  # fmt: skip
