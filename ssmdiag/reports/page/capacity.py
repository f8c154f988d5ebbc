"""Memory capacity as a page: what can be rebuilt how far back, every layer, memory functions, other steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.capacity.capacity import LayerCapacity
from ssmdiag.capacity.report import CapacityReport, report_alone
from ssmdiag.families import known_families
from ssmdiag.printable import module_name
from ssmdiag.reports import words
from ssmdiag.reports.capacity_text import NONE_GIVEN, answer, best, document, remarks
from ssmdiag.reports.drawing.plot import Mark
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.page.page import Page, at, digits, steps
from ssmdiag.reports.page.pictures import lag_rows, shares_plot
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.reports.drawing.picture import Picture
    from ssmdiag.reports.drawing.plot import Plot

MOST_CURVES = 5
_MEASURES = ("length", "at 0.1", "held 50 %", "held 90 %", "accuracy", "capacity in context", "modes left")
_KEYS = ("length_half", "length_tenth", "held_half", "held_nine_tenths", "accuracy", "capacity", "effective_modes")


def page(
    found: Sequence[CapacityReport] | CapacityReport | LayerCapacity,
    path: str = "",
    context: int = 0,
    guess: str | None = None,
    attention_layers: Sequence[str] = (),
    *,
    stated: bool = True,
    chosen: str | None = None,
    wrong: Sequence[str] = (),
    command: str = "",
) -> Page:
    """Return the page of the layers of one checkpoint, or of one layer.

    `stated` says whether a context is known; `chosen`, which checkpoint of its run it is; `wrong`, what is wrong with
    the checkpoint.
    """
    layers = _reports(found)
    context = context or layers[0].own.context
    labels = label_layers([layer.name for layer in layers])
    data = document(path, layers, context, attention_layers=attention_layers)
    name = words.checkpoint_name(path) if path else module_name(layers[0].name)
    made = Page(f"{name}: memory capacity", answer(layers, labels, attention_layers, wrong))
    if guess:
        made.warn(guess)
    made.paragraph(chosen or "")
    made.heading("Layers")
    heads = [
        "layer",
        "family",
        "channels",
        "modes",
        *_MEASURES[:1],
        "length, max",
        *_MEASURES[1:],
        "states used",
        "module",
    ]
    titles = {family.name: family.title for family in known_families()}
    rows = []
    for layer, label in zip(data["layers"], labels, strict=True):
        length, *others = _cells(layer["capacity"])
        longest = steps(at(layer, "capacity", "over_channels", "length_half", "max"))
        used = digits(layer["states_used"])
        rows.append(
            [
                label,
                titles.get(layer["family"], layer["family"]),
                layer["channels"],
                layer["modes"],
                length,
                longest,
                *others,
                used,
                layer["name"],
            ]
        )
    caption = f"Medians over channels; lengths in steps, over a context of {context:,}{NONE_GIVEN * (not stated)}"
    made.table(caption, heads, rows)
    made.remarks(remarks(layers, labels))
    made.heading("Pictures")
    made.gallery(_pictures(layers, labels))
    for layer, label in zip(data["layers"], labels, strict=True):
        if layer["name"] == best(layers).name and layer["initialisations"]:
            beside = {"this file": layer["capacity"], **layer["initialisations"]}
            _compared(made, f"Layer {label} beside its family's initialisations", "start", beside)
        if layer["step_factors"]:
            _compared(
                made, f"Layer {label} with its step Δ scaled: more length costs accuracy", "Δ ×", layer["step_factors"]
            )
        if layer["recommended_step"]:
            made.paragraph(f"Layer {label}: {layer['recommended_step']['sentence']}")
    dtype = layers[0].own.state_dtype
    settings = {
        "checkpoint": path or None,
        "context length": context if stated else f"{context:,}{NONE_GIVEN}",
        "format of the state": dtype,
        "ssmdiag": __version__,
    }
    made.settings(command, settings)
    return made


def main_picture(found: Sequence[CapacityReport] | CapacityReport | LayerCapacity) -> Picture | None:
    """Return the memory functions of the layers that rebuild farthest."""
    layers = _reports(found)
    return next(iter(_pictures(layers, label_layers([layer.name for layer in layers]))), None)


def _reports(found: Sequence[CapacityReport] | CapacityReport | LayerCapacity) -> Sequence[CapacityReport]:
    if isinstance(found, CapacityReport):
        return [found]
    if isinstance(found, LayerCapacity):
        return [report_alone(found)]
    return found


def _cells(capacity: Mapping[str, Any]) -> list[Any]:
    return [(digits if key in ("accuracy", "capacity", "effective_modes") else steps)(capacity[key]) for key in _KEYS]


def _compared(made: Page, caption: str, head: str, beside: Mapping[str, Mapping[str, Any]]) -> None:
    made.heading(caption, 3)
    made.table(
        "Medians over channels, or over Δ", [head, *_MEASURES], [[name, *_cells(own)] for name, own in beside.items()]
    )


def _pictures(layers: Sequence[CapacityReport], labels: Sequence[str]) -> list[Plot | Picture]:
    known = [(layer, label) for layer, label in zip(layers, labels, strict=True) if layer.own.curve]
    if not known:
        return []
    first = best([layer for layer, _ in known])
    farthest = sorted(known, key=lambda pair: (pair[0] is not first, -_length(pair[0])))[:MOST_CURVES]
    context = first.own.context
    some = f" The {MOST_CURVES} of {len(known):,} layers that rebuild farthest." if len(known) > MOST_CURVES else ""
    about = "How well the input so many steps ago can be rebuilt from the state, mean over channels: 1 is exactly."
    curves = {f"layer {label}": layer.own.curve for layer, label in farthest}
    marks = [Mark("y", 0.5, "one half"), Mark("x", float(context), f"context {context:,}")]
    plot = shares_plot("Memory function", about + some, curves, y="share rebuilt", marks=marks)
    rows = lag_rows(
        "Memory function of every layer", about, {label: layer.own.curve for layer, label in known}, "share"
    )
    return [plot, rows] if rows and len(known) > 1 else [plot]


def _length(layer: CapacityReport) -> float:
    return layer.own.length_half.median if layer.own.length_half else -1.0
