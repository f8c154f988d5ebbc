"""Observed memory as a page: use of the past, what layers retain on the texts and at rest, rounded states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.reports import words
from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.plot import Curve, Mark, Plot
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.page.diagnosis import versions
from ssmdiag.reports.page.page import Cell, Page, at, digits, percent, steps
from ssmdiag.reports.page.pictures import lag_rows, shares_plot
from ssmdiag.reports.probe.json import Shown, document
from ssmdiag.reports.probe.text import answer, remarks, use_remarks

if TYPE_CHECKING:
    from ssmdiag.probing.probe import ProbedLayer, ProbedMemory
    from ssmdiag.reports.drawing.picture import Picture

Compared = tuple[Shown, "ProbedMemory"]
ALSO_DRAWN = 3
"""Layers whose retention is drawn besides the one that retains longest."""


def page(
    memory: ProbedMemory, shown: Shown | None = None, compared: Sequence[Compared] = (), *, command: str = ""
) -> Page:
    """Return the page of one model on its texts; `compared` is the same model on others."""
    shown = shown or Shown(memory.model, ())
    labels = label_layers([layer.name for layer in memory.layers])
    data = document(memory, shown, compared)
    made = Page(
        f"{words.checkpoint_name(shown.model)}: observed memory",
        answer(memory, labels),
    )
    _layers(made, data["layers"], labels, "Layers")
    made.remarks([*use_remarks(memory), *remarks(memory, labels, True)])
    made.heading("Pictures")
    made.gallery(_pictures(memory, labels))
    _use(made, data["use"])
    _rounded(made, data["layers"], labels)
    for (texts, other), told in zip(compared, data["compared"], strict=True):
        others = label_layers([layer.name for layer in other.layers])
        made.heading(f"On {', '.join(texts.texts)}")
        made.answer(answer(other, others))
        _layers(made, told["layers"], others, "")
        made.gallery(_pictures(other, others))
        _use(made, told["use"])
    settings = {
        "model": shown.model, "class": memory.model, "texts read": ", ".join(shown.texts) or None,
        "texts": data["texts"], "steps of a text": data["length"], "tokens": data["tokens"], "weights": data["dtype"],
    }  # fmt: skip
    made.settings(command, {**settings, **versions(data)})
    return made


def main_picture(memory: ProbedMemory) -> Picture | None:
    """Return what the layer that retains longest retains, else the use of the past."""
    return next(_pictures(memory, label_layers([layer.name for layer in memory.layers])), None)


def _pictures(memory: ProbedMemory, labels: Sequence[str]) -> Iterator[Picture]:
    seen = [(layer, label) for layer, label in zip(memory.layers, labels, strict=True) if layer.observed]
    for layer, label in sorted(seen, key=lambda pair: -_p95(pair[0]))[: 1 + ALSO_DRAWN]:
        assert layer.observed is not None
        curves = {"observed": layer.observed.retention, "gates at rest": layer.nominal_retention}
        about = "Share of a state left after so many steps: observed on the texts, and with the gates at rest."
        yield shares_plot(f"Retention of layer {label}", about, {k: v for k, v in curves.items() if v}, y="share left")
    rows = {label: layer.observed.retention for layer, label in seen if layer.observed}
    if len(rows) > 1 and (
        picture := lag_rows("Retention of every layer, observed", "By steps back.", rows, "share left")
    ):
        yield picture
    use = memory.use
    if use and use.by_cutting.lost:
        kept = [(float(count), 1 - lost) for count, lost in use.by_cutting.lost]
        about = "Share of the past's effect on the answers that is kept with so many steps of it."
        marks = [
            Mark("x", float(value), said)
            for value, said in ((use.by_cutting.all_but_a_hundredth, "99 %"),)
            if value is not None and value > 0
        ]
        yield shares_plot("Use of the past", about, {"observed": kept}, y="share kept", marks=marks)
    if use and use.loss_by_context:
        yield Plot(
            title="Loss by context",
            about="Loss of the next token with so many steps of the past, in nats.",
            x=Axis("steps of context, logarithmic", "log1p", low=0.0),
            y=Axis("nats"),
            curves=[Curve("loss", [(float(one.steps), one.nats) for one in use.loss_by_context])],
        )


def _layers(made: Page, layers: Sequence[Mapping[str, Any]], labels: Sequence[str], heading: str) -> None:
    if not layers:
        return
    if heading:
        made.heading(heading)
    heads = [
        "layer", "family", "channels", "at rest, median", "at rest, 95 %", "observed, median", "95 %", "99 %",
        "beyond the text", "tokens hold", "tokens reset", "law", "law, over lags", "not observed", "module",
    ]  # fmt: skip
    rows = []
    for layer, label in zip(layers, labels, strict=True):
        seen = layer["observed"] or {}
        window = seen.get("law_window")
        rows.append([
            label, layer["family"], layer["channels"], *(steps(at(layer, "nominal", q)) for q in ("median", "p95")),
            *(_bounded(at(seen, "half_life"), q) for q in ("median", "p95", "p99")),
            *(percent(seen.get(name)) for name in ("censored", "hold", "reset")),
            seen.get("law"), f"{window[0]:,}–{window[1]:,}" if window else None, layer["error"], layer["name"],
        ])  # fmt: skip
    caption = "Half-lives in steps; ≥: some are longer than the text before their position"
    made.table(caption, heads, rows, ["" if layer["observed"] else "warning" for layer in layers])


def _bounded(lives: Mapping[str, Any] | None, name: str) -> Cell:
    value = at(lives, name)
    cell = steps(value)
    return Cell(f"≥ {cell.said}", value) if lives and name in lives["at_least"] else cell


def _use(made: Page, use: Mapping[str, Any] | None) -> None:
    if use is None:
        return
    made.heading("Use of the past by context")
    cutting = use["by_cutting"]
    rows = [
        [said, cutting[name], *(steps(value) for value in _ends(cutting["intervals"].get(name)))]
        for name, said in (("half", "50 %"), ("nine_tenths", "90 %"), ("all_but_a_hundredth", "99 %"))
    ]
    made.table(
        f"Steps that keep so much of the past's effect ({use['distance']})", ["kept", "steps", "from", "to"], rows
    )
    if use["gain_by_context"]:
        losses = dict(use["loss_by_context"])
        rows = [
            [count, digits(losses.get(count), 5), *(digits(x) for x in more)] for count, *more in use["gain_by_context"]
        ]
        made.table("Loss in nats by steps of context, and what the whole past improves it by",
                   ["steps", "loss", "gain", "2.5 %", "97.5 %"], rows)  # fmt: skip
    if use["by_replacement"]:
        rows = [[lag, digits(distance)] for lag, distance in use["by_replacement"]]
        made.table("Distance of the answers after one step was replaced", ["lag", use["distance"]], rows)


def _ends(interval: Any) -> tuple[Any, Any]:
    if isinstance(interval, Mapping):
        return interval.get("low"), interval.get("high")
    return (interval[0], interval[1]) if interval else (None, None)


def _rounded(made: Page, layers: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> None:
    stepped = [
        (label, layer["observed"]["rounded_state"])
        for layer, label in zip(layers, labels, strict=True)
        if layer["observed"] and layer["observed"]["rounded_state"]
    ]
    if not stepped:
        return
    made.heading("State rounded at every step")
    heads = ["layer", *(f"{name}, {what}" for name in stepped[0][1] for what in ("median", "worst"))]
    rows = [[label, *(percent(found[n][w]) for n in found for w in ("median", "worst"))] for label, found in stepped]
    made.table("Error of a layer's output, in percent of the output: median and worst channel", heads, rows)


def _p95(layer: ProbedLayer) -> float:
    return layer.observed.half_life.p95 if layer.observed else -1.0
