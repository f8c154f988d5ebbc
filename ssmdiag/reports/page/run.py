"""A run over its checkpoints as a page: verdict, every layer, what moves, margins over steps, limits ahead."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.reports import words
from ssmdiag.reports.compare.json import run_document
from ssmdiag.reports.compare.run import remarks
from ssmdiag.reports.compare.words import answer, said_of, status_of, step, urgency
from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.plot import MOST_POINTS, Curve, Mark, Plot, thinned
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.page.diagnosis import versions
from ssmdiag.reports.page.page import STATES, Cell, Page, at, digits, margin, percent, steps

if TYPE_CHECKING:
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.reports.drawing.picture import Picture

MOST_CURVES = 6
MOST_CHECKPOINTS = 500


def page(run: RunComparison, *, command: str = "") -> Page:
    """Return the page of a run."""
    labels = label_layers([layer.name for layer in run.layers])
    data = run_document(run)
    made = Page(f"{words.plural(len(run.checkpoints), 'checkpoint')} of a run: memory", answer(run, labels))
    if run.problems:
        made.heading("Not read")
        made.remarks(run.problems)
    made.heading("What moves")
    named = dict(zip((layer.name for layer in run.layers), labels, strict=True))
    order = sorted(range(len(labels)), key=lambda k: urgency(run.layers[k]))
    made.remarks(f"Layer {labels[k]}: {said_of(run.layers[k], run)}." for k in order)
    made.heading("Layers")
    heads = [
        "layer", "verdict", "margin, first", "margin, last", "slowest τ, first", "slowest τ, last",
        "slowest τ grows by", "modes moved", "horizon, first", "horizon, last", "law, first", "law, last",
        "modes that round to 1 in bfloat16", "module",
    ]  # fmt: skip
    rows = [
        _row(layer, label, run.layers[k]) for k, (layer, label) in enumerate(zip(data["layers"], labels, strict=True))
    ]
    made.table("First and last checkpoint of every layer; τ and horizon in time steps, margin 1−|λ̄|", heads, rows,
               [_colour(layer, run, named) for layer in run.layers])  # fmt: skip
    made.remarks(remarks(run))
    made.heading("Pictures")
    made.gallery(_pictures(run, labels))
    ahead = list(_limits(data, labels))
    if ahead:
        made.heading("Limits")
        heads = ["layer", "limit", "rate at it", "passed at step", "projected step", "earliest", "latest", "not before"]
        made.table(f"Rates at which a decay rounds to 1, outgrows the context or crosses; by {run.unit}", heads, ahead)
    made.heading("Checkpoints")
    some = run.checkpoints[:MOST_CHECKPOINTS]
    left = len(run.checkpoints) - len(some)
    made.table(
        f"In the order they were compared in ({run.order.value})" + (f"; {left:,} more are left out" if left else ""),
        ["checkpoint", run.unit],
        [[checkpoint.path, checkpoint.step] for checkpoint in some],
    )
    made.settings(command, {"context length": data["context_length"], **versions(data)})
    return made


def main_picture(run: RunComparison) -> Picture | None:
    """Return the margins over the run, else the slowest time constants."""
    return next(_pictures(run, label_layers([layer.name for layer in run.layers])), None)


def _pictures(run: RunComparison, labels: Sequence[str]) -> Iterator[Picture]:
    order = sorted(range(len(labels)), key=lambda k: urgency(run.layers[k]))
    left = len(order) - MOST_CURVES
    some = f" The {MOST_CURVES} most urgent of {len(order):,} layers." if left > 0 else ""
    if len(run.checkpoints) > MOST_POINTS:
        some += f" {MOST_POINTS} of {len(run.checkpoints):,} checkpoints, spread evenly."
    margins = [_curve(run, k, labels, "margin") for k in order[:MOST_CURVES]]
    margins = [curve for curve in margins if curve.points]
    past = any(value <= 0 for curve in margins for _, value in curve.points)
    if any(value > 0 for curve in margins for _, value in curve.points):
        yield Plot(
            title=f"Margin 1−|λ̄| over {run.unit}s",
            about="Distance of the slowest mode from the stability boundary; lower is slower."
            + (" Values of 0 or below, at or past the boundary, are in the table alone." if past else "")
            + some,
            x=Axis(f"training {run.unit}"),
            y=Axis("margin, logarithmic", "log"),
            curves=margins,
        )
    slowest = [_curve(run, k, labels, "slowest") for k in order[:MOST_CURVES]]
    slowest = [curve for curve in slowest if curve.points]
    if any(value > 0 for curve in slowest for _, value in curve.points):
        limits = [Mark("y", float(run.context_length), f"context {run.context_length:,}")] if run.context_length else []
        yield Plot(
            title=f"Slowest time constant over {run.unit}s",
            about="In time steps, with the context where it is known: above it, the slowest mode outlasts the context."
            + some,
            x=Axis(f"training {run.unit}"),
            y=Axis("steps, logarithmic", "log"),
            curves=slowest,
            marks=limits,
        )


def _curve(run: RunComparison, number: int, labels: Sequence[str], what: str) -> Curve:
    layer = run.layers[number]
    values = [(float(point.step), getattr(point, what)) for point in layer.points]
    known = [(step, value) for step, value in values if value is not None and math.isfinite(value)]
    return Curve(f"layer {labels[number]}, {layer.verdict.value}", thinned(known))


def _row(data: Mapping[str, Any], label: str, layer: Any) -> list[Any]:
    by_step = {point["step"]: point for point in data["points"]}
    first, last = by_step[layer.used[0]], by_step[layer.used[-1]]
    trend = data["slow_modes" if layer.by_tail else "slowest_mode"]["trend"]
    change = at(trend, "log_rate_change")
    grows = f"× {math.exp(max(min(-change, 700.0), -700.0)):.3g}" if isinstance(change, float) else None
    return [
        label, data["verdict"], margin(first["margin"]), margin(last["margin"]),
        steps(first["slowest_time_constant"]), steps(last["slowest_time_constant"]), grows,
        percent(last["share_moved"]), steps(at(first, "horizon", "max")), steps(at(last, "horizon", "max")),
        layer.first.decay.law[0] if layer.first.decay else None,
        layer.last.decay.law[0] if layer.last.decay else None,
        percent(at(last, "share_rounding_to_one", "bfloat16")), data["name"],
    ]  # fmt: skip


def _limits(data: Mapping[str, Any], labels: Sequence[str]) -> Iterator[list[Any]]:
    for layer, label in zip(data["layers"], labels, strict=True):
        for limit in layer["limits"]:
            ahead = limit["projection"]
            if ahead is None and limit["passed_at_step"] is None:
                continue
            said = [_step(at(ahead, name)) for name in ("step", "earliest", "latest", "not_before")]
            yield [label, limit["name"], digits(limit["rate"]), limit["passed_at_step"], *said]


def _step(value: float | str | None) -> Cell:
    """Return a projected step as sentences have it."""
    return Cell("–" if value is None else step(float(value)), value)


def _colour(layer: LayerHistory, run: RunComparison, named: Mapping[str, str]) -> str:
    """Return how bad a layer is, as the answer would say of it."""
    state = STATES[status_of(layer, run, named)[0]]
    return state if state in ("error", "warning") else ""
