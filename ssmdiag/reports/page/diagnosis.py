"""A diagnosis as a page: verdict, findings, every layer, time constants, kernels with their laws, settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE
from ssmdiag.reports import words
from ssmdiag.reports.answer import answer
from ssmdiag.reports.check_text import not_judged
from ssmdiag.reports.drawing.heat import Heat, spread_rows
from ssmdiag.reports.folding import fold, label_layers
from ssmdiag.reports.grouping import count_findings, group_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.json import document
from ssmdiag.reports.page.page import Page, State, at, digits, margin, steps
from ssmdiag.reports.page.pictures import decay_plot
from ssmdiag.reports.text import laws, remarks

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.drawing.picture import Picture

STATES: Mapping[str, State] = {"error": "error", "warning": "warning", "note": "note"}
"""Severity → the state of what is said of it."""
MOST_FINDINGS = 100
"""Findings of one rule listed one by one."""
COLUMNS = (
    "layer", "family", "channels", "modes", "taps", "half-life, median", "half-life, slowest", "τ, slowest", "margin",
    "horizon, longest", "law", "law, over lags", "90 % of energy after", "length", "modes left", "grow", "flat", "NaN",
    "stored", "module",
)  # fmt: skip


def page(diagnosis: Diagnosis, *, command: str = "") -> Page:
    """Return the page of one checkpoint."""
    labels = label_layers([layer.name for layer in diagnosis.layers])
    name = words.checkpoint_name(diagnosis.path)
    made = Page(f"{name}: memory", answer(diagnosis))
    data = document(diagnosis)
    fill(made, diagnosis, data, labels)
    made.settings(command, settings_of(data))
    return made


def main_picture(diagnosis: Diagnosis) -> Picture | None:
    """Return the one picture of a checkpoint: the kernel that reaches farthest, else its time constants."""
    labels = label_layers([layer.name for layer in diagnosis.layers])
    return next(iter([*_kernels(diagnosis, labels), time_constants(diagnosis, labels)]), None)


def state_of(diagnosis: Diagnosis) -> State:
    """Return how bad it is: the worst finding, or that part could not be read."""
    if diagnosis.problems or any(layer.unstable or layer.nonfinite for layer in diagnosis.layers):
        return "error"
    if diagnosis.findings:
        return STATES[diagnosis.findings[0].severity]
    return "ok" if diagnosis.rules else "plain"


def fill(made: Page, diagnosis: Diagnosis, data: Mapping[str, Any], labels: Sequence[str], *, level: int = 2) -> None:
    """Add everything below the verdict; `data` is the diagnosis as JSON has it."""
    if diagnosis.guess:
        made.warn(diagnosis.guess)
    made.paragraph(diagnosis.chosen or "")
    if diagnosis.problems:
        made.heading("Not read", level)
        made.remarks(diagnosis.problems)
    _findings(made, diagnosis, level)
    if diagnosis.layers:
        made.heading("Layers", level)
        caption = "Steps are time steps (tokens); margin 1−|λ̄| is the distance from the stability boundary"
        states = ["error" * bool(layer.unstable or layer.nonfinite) for layer in diagnosis.layers]
        made.table(caption, COLUMNS, map(layer_row, data["layers"], labels, diagnosis.layers), states)
        rows = fold(diagnosis.layers, labels, all_layers=False)
        full = Settings(full=True)
        made.remarks([*laws(diagnosis, rows, full), *remarks(diagnosis, labels, full)])
        made.heading("Pictures", level)
        made.gallery([time_constants(diagnosis, labels), *_kernels(diagnosis, labels)])


def settings_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a page says of how it was made, from a document."""
    checkpoint = data["checkpoint"]
    return {
        "checkpoint": checkpoint["path"],
        "format": checkpoint["format"],
        "bytes": checkpoint["bytes"],
        "bytes read": checkpoint["bytes_read"],
        "train step": checkpoint["train_step"],
        "context length": data["context_length"],
        **versions(data),
    }


def versions(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what every page says of how it was made."""
    return {
        "device": data.get("device"),
        "seconds": data.get("seconds") and round(data["seconds"], 3),
        "seed": data.get("seed"),
        "ssmdiag": data.get("ssmdiag_version"),
        "torch": data.get("torch_version"),
    }


def time_constants(diagnosis: Diagnosis, labels: Sequence[str]) -> Picture | None:
    """Return the strip of time constants: a row for each layer, of very many for some of them."""
    rows = spread_rows(len(diagnosis.layers))
    some = "" if len(rows) == len(labels) else f" {len(rows)} of {len(labels):,} layers, spread evenly."
    counts = [diagnosis.layers[row].histogram for row in rows]
    return strip([labels[row] for row in rows], counts, diagnosis.context_length, some)


def strip(
    labels: Sequence[str],
    counts: Sequence[Sequence[float]],
    context: int | None,
    some: str = "",
    *,
    what: str = "layer",
    shade: str = "modes",
) -> Picture | None:
    """Return modes by row and quarter decade of time constant, with the context marked."""
    total = [sum(column) for column in zip(*counts, strict=True)]
    used = [k for k, count in enumerate(total) if count]
    if not used:
        return None
    place = BINS_PER_DECADE * (math.log10(context) - FIRST_DECADE) if context else float(used[0])
    decades = len(total) // BINS_PER_DECADE
    start = min(used[0] // BINS_PER_DECADE, int(place // BINS_PER_DECADE), decades - 2)
    stop = max(used[-1] // BINS_PER_DECADE + 1, start + 2, min(math.ceil(place / BINS_PER_DECADE), decades))
    first, last = start * BINS_PER_DECADE, stop * BINS_PER_DECADE
    said = [words.decade(FIRST_DECADE + decade) for decade in range(start, stop + 1)]
    if not used[0]:
        some += f" The first column has all below {_begins(1):.2g} steps."
    if used[-1] == len(total) - 1:
        said[-1] = "∞"
        some += f" The last has all from {words.steps(_begins(used[-1]))} steps on, and those that never decay."
    return Heat(
        title="Time constants τ",
        about=f"Modes of a {what} per quarter decade of their time constant, in steps.{some}",
        labels=labels,
        values=[row[first:last] for row in counts],
        columns=list(map(_begins, range(first, last))),
        ticks=[(float(BINS_PER_DECADE * k), tick) for k, tick in enumerate(said)],
        across="time constant in steps; a column begins at its number",
        shade=shade,
        most=max(max(row) for row in counts),
        mark=(place - first, f"context {context:,}") if context and place <= last else None,
    )


def _begins(column: int) -> float:
    """Return the time constant from which on a column has modes."""
    return float(10 ** (FIRST_DECADE + column / BINS_PER_DECADE))


def layer_row(data: Mapping[str, Any], label: str, layer: LayerDiagnosis) -> list[Any]:
    """Return the cells of `COLUMNS`, from a layer as JSON has it and as it is."""
    decay, capacity = layer.decay, data["capacity"]
    law, window = decay.law if decay else (None, None)
    return [
        label, layer.title, data["channels"],
        None if data["taps"] else data["modes"], data["taps"],
        steps(at(data, "half_life", "median")), steps(at(data, "half_life", "max")),
        steps(at(data, "time_constant", "max")), margin(data["margin"]), steps(at(data, "horizon", "max")),
        law, f"{window[0]:,}–{window[1]:,}" if window else None,
        steps(at(data, "decay", "layer", "lags", "nine_tenths")),
        steps(at(capacity, "length_half")), digits(at(capacity, "effective_modes")),
        *(data[f"{name}_modes"] or None for name in ("unstable", "marginal", "nonfinite")),
        data["dtype"], data["name"],
    ]  # fmt: skip


def _findings(made: Page, diagnosis: Diagnosis, level: int) -> None:
    if not diagnosis.rules:
        return
    groups = group_findings(diagnosis)
    made.heading(f"Findings: {count_findings(diagnosis)}" if groups else "Findings: none", level)
    for group in groups:
        name = f"{group.worst.code} {group.worst.rule}, {group.worst.severity}"
        made.finding(
            name,
            f"{words.capitalised(group.text)}.",
            words.capitalised(group.worst.advice),
            STATES[group.worst.severity],
        )
    for group in groups:
        if len(group.findings) > 1:
            each = [[f.where, f.tensor or "", f.value, f.message] for f in group.findings[:MOST_FINDINGS]]
            left = len(group.findings) - len(each)
            caption = f"{group.worst.code}, every finding" + (f"; {left:,} more are left out" if left > 0 else "")
            _folded(made, caption, ["layer", "tensor", "value", "what was seen"], each)
    if diagnosis.known:
        each = [[f.code, f.severity, f.where, f.message] for f in diagnosis.known[:MOST_FINDINGS]]
        caption = f"{words.plural(len(diagnosis.known), 'finding')} in the baseline"
        _folded(made, caption, ["rule", "severity", "layer", "what was seen"], each)
    made.paragraph(words.capitalised(not_judged(diagnosis)))


def _folded(made: Page, caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    inner = Page("", "")
    inner.table(caption, heads, rows)
    made.fold(caption, inner)


def _kernels(diagnosis: Diagnosis, labels: Sequence[str]) -> Iterator[Picture]:
    """Yield the kernel of the farthest layer of each row that a screen would show, the farthest first."""
    named = dict(zip((layer.name for layer in diagnosis.layers), labels, strict=True))
    rows = fold(diagnosis.layers, labels, all_layers=False)
    for row in sorted(rows, key=lambda row: -(row.longest("horizon") or 0.0)):
        layer = row.farthest
        if layer.decay and layer.decay.envelope:
            one = "" if len(row.layers) == 1 else f", which reaches farthest of {row.label}"
            what = f"{'Kernel' if layer.time_invariant else 'Retention'} of layer {named[layer.name]}{one}"
            yield decay_plot(layer.decay, what)
