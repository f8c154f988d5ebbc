"""What a model's layers can rebuild of their input: verdict, table, heat map, and what another step would give."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.families import known_families
from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import AT_REST, Answer, attention
from ssmdiag.reports.console import Column, Page, few, most_lines
from ssmdiag.reports.folding import label_layers
from ssmdiag.reports.json import SCHEMA_VERSION, capacity_document, pick, plain
from ssmdiag.reports.pictures import heat_map

if TYPE_CHECKING:
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.capacity.report import CapacityReport
    from ssmdiag.recurrence.quantiles import Quantiles
    from ssmdiag.reports.answer import Status
    from ssmdiag.reports.interface import Settings


FEW_ROWS = 3
"""Layers of the table and the picture of a short report; fewer where it has too many lines."""
MOST_LINES = 20
"""Lines of a short report at 80 columns."""
MOST_REMARKS = 2
NONE_GIVEN = " (none is given: --length sets it)"
USUAL = "white input of zero mean"
"""How what is assumed of rounding begins where no option says otherwise: a short report leaves it out."""


def report(
    path: str,
    layers: Sequence[CapacityReport],
    context: int,
    stated: bool,
    settings: Settings,
    chosen: str | None = None,
    attention_layers: Sequence[str] = (),
    wrong: Sequence[str] = (),
) -> str:
    """Return the report of one checkpoint; `chosen` says which it is of its run, `wrong` what is wrong with it."""
    path, layers, chosen, wrong = printable_record((path, tuple(layers), chosen, tuple(wrong)))
    said = answer(layers, label_layers([layer.name for layer in layers]), attention_layers, wrong)
    context_line = f"context {context:,}{NONE_GIVEN * (not stated)}"
    text = ""
    for most in range(FEW_ROWS, 0, -1):
        text = _page(path, layers, said, context_line, settings, chosen, most).text()
        if settings.full or settings.all_layers or len(text.splitlines()) <= most_lines(settings, MOST_LINES):
            break
    return text


def _page(
    path: str,
    layers: Sequence[CapacityReport],
    said: Answer,
    where: str,
    settings: Settings,
    chosen: str | None,
    most: int,
) -> Page:
    """Return the report with so many layers in its table and picture."""
    page, labels = Page(settings), label_layers([layer.name for layer in layers])
    page.paragraph(said.line, said.style)
    if settings.quiet:
        return page
    shown = range(len(layers)) if settings.full or settings.all_layers else _spread(layers, most)
    some, names = [layers[k] for k in shown], [labels[k] for k in shown]
    titles = {family.name: family.title for family in known_families()}
    what = words.families(titles.get(layer.family, layer.family) for layer in layers)
    what += f", {len(some)} of them shown (--full)" * (len(some) < len(layers))
    page.paragraph(f"{words.checkpoint_name(path)}  {what}  {where}")
    if chosen:
        page.paragraph(chosen)
    page.tables(_columns(some, names, settings))
    rows = {name: one.own.curve for one, name in zip(some, names, strict=True) if one.own.curve and _decays(one)}
    if settings.plots and rows:
        full = "memory function: how well the input so many steps ago can be rebuilt, mean over channels"
        page.picture(
            heat_map(rows, settings),
            full if settings.full else "share of a white input that can be rebuilt so many steps later",
        )
    for layer, label in zip(layers, labels, strict=True):
        if settings.full and layer is best(layers):
            _against_initial(page, layer, label)
        _other_steps(page, layer, label)
    notes = remarks(layers, labels)
    assumed = [note for note in notes if note.startswith("assumed: ")]
    if not settings.full:
        notes = notes[len(assumed) :]
        usual = all(one.own.assumes.startswith(USUAL) and one.own.state_dtype != "int8" for one in layers)
        assumed = [] if usual else assumed
    page.remarks(notes if settings.full else [*assumed, *few(notes, MOST_REMARKS)])
    return page


def _spread(layers: Sequence[CapacityReport], most: int) -> list[int]:
    """Return which layers a short report shows, in layer order: evenly from the longest length to the shortest."""
    order = sorted(range(len(layers)), key=lambda k: _reach(layers[k].own), reverse=True)
    most = min(most, len(order))
    return sorted({order[round(k * (len(order) - 1) / max(most - 1, 1))] for k in range(most)})


def document(
    path: str,
    layers: Sequence[CapacityReport],
    context: int,
    chosen: str | None = None,
    attention_layers: Sequence[str] = (),
    wrong: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the same as plain data."""
    labels = label_layers([layer.name for layer in layers])
    return plain({
        "schema_version": SCHEMA_VERSION,
        **pick(answer(layers, labels, attention_layers, wrong), "status answer=text"),
        "checkpoint": {"path": path, "chosen": chosen},
        "context_length": context,
        "attention_layers": attention_layers,
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


def answer(
    layers: Sequence[CapacityReport],
    labels: Sequence[str],
    attention_layers: Sequence[str] = (),
    wrong: Sequence[str] = (),
) -> Answer:
    """Return what is wrong; how far back inputs can be rebuilt, how much of its state a rounded model keeps."""
    told = _answer(layers, labels, is_told=bool(wrong))
    return Answer("problem" if wrong else told.status, "; ".join([*wrong, told.text, *attention(attention_layers)]))


def _answer(layers: Sequence[CapacityReport], labels: Sequence[str], *, is_told: bool) -> Answer:
    """Return the same of the layers that were read; `is_told` where what is wrong with them is said before it."""
    rest = "" if all(layer.time_invariant for layer in layers) else f" {AT_REST}"
    judged = [layer for layer in layers if layer.own.modes]
    if not judged:
        why = "" if is_told else ": its modes are NaN, growing, or beyond float64"
        return Answer("undetermined", f"no layer's capacity is known{why}")
    unknown = sum(layer.own.unknown for layer in layers)
    broken = ""
    if unknown and not is_told:
        broken = f"no answer for {words.plural(unknown, 'channel')}: NaN, growing, or a failed self-test; "
    if not any(map(_decays, judged)):
        none = "none of the other modes" if unknown else "none of its modes"
        return Answer("undetermined", f"{broken}no layer's capacity is known: {none} decays")
    several = [layer for layer in judged if _decays(layer) and not has_one_mode(layer)]
    status: Status = "problem" if unknown else "ok"
    if not several:
        return Answer(
            status,
            f"{broken}each {'other ' * bool(unknown)}channel has one mode{rest}, a running average of its input, from "
            "which no single input can be rebuilt: its half-life says all, `ssmdiag inspect`",
        )
    known = [layer for layer in several if layer.own.length_half]
    if not known:
        return Answer(status, f"{broken}no channel rebuilds half of even its present input{rest}; {_kept(several)}")
    farthest = best(known)
    assert farthest.own.length_half is not None
    length = farthest.own.length_half
    where = f"layer {labels[list(layers).index(farthest)]}" if len(layers) > 1 else "its layer"
    able, of = farthest.own.channels - farthest.own.without_half - farthest.own.unknown, farthest.own.channels
    who = f"{able:,} of {of:,} channels of {where} rebuild{'s' * (able == 1)}" if able < of else f"{where} rebuilds"
    if words.steps(length.max) == words.steps(length.median):
        reach = f"the input {words.in_steps(length.median)} back" if length.median else "the present input, none older"
    else:
        median = f"{words.in_steps(length.median)} back" if length.median else "the present one alone"
        reach = f"the input, {median} in the median, {words.in_steps(length.max)} back at best"
    return Answer(status, f"{broken}{who} half or more of {reach}{rest}; {_kept(several)}")


def _kept(layers: Sequence[CapacityReport]) -> str:
    """Return how many of the numbers of a state survive the format that the state is rounded to, and bf16."""
    state = layers[0].own.state_dtype
    formats = [state, *(["bf16"] if state != "bf16" else [])]
    kept = [(name, [own.median for one in layers if (own := one.own.surviving.get(name))]) for name in formats]
    left = [f"{name} {'keeps ' * (k == 0)}{_middle(values):.3g}" for k, (name, values) in enumerate(kept) if values]
    modes = [layer.own.modes.median for layer in layers if layer.own.modes]
    least = "at least " if any(layer.own.is_bound for layer in layers) else ""
    where = " (median layer)" * (len(layers) > 1)
    held = words.plural(f"{_middle(modes):.0f}", "mode")
    return f"of a channel's {held} {', '.join(left).replace('keeps ', f'keeps {least}')}{where}"


def _decays(layer: CapacityReport) -> bool:
    """Whether any mode of the layer was left to reckon with."""
    return layer.own.modes is None or layer.own.modes.max > 0


def has_one_mode(layer: CapacityReport) -> bool:
    """Whether a channel of the layer holds one number, which rebuilds no input: capacity says nothing of it."""
    return layer.own.modes is not None and 0 < layer.own.modes.max <= 1


def best(layers: Sequence[CapacityReport]) -> CapacityReport:
    """Return the layer whose median channel rebuilds farthest."""
    return max(layers, key=lambda layer: _reach(layer.own))


def _reach(own: CapacitySummary) -> tuple[float, float]:
    return (own.length_half.median, own.length_half.max) if own.length_half else (-1.0, -1.0)


def _columns(layers: Sequence[CapacityReport], labels: Sequence[str], settings: Settings) -> list[Column]:
    """Return medians over channels; the longest channel beside."""
    cells = [_cells(layer.own) if _decays(layer) else ["–"] * len(_COMPARED) for layer in layers]
    length, tenth, half, most, accuracy, left = (list(column) for column in zip(*cells, strict=True))
    longest = [words.steps(layer.own.length_half.max if layer.own.length_half else None) for layer in layers]
    used = ["–" if layer.states_used is None else f"{layer.states_used:.0f}" for layer in layers]
    bf16 = [_digits(_median(layer.own.surviving.get("bf16"))) if _decays(layer) else "–" for layer in layers]
    columns = [
        (True, Column("\nlayer", labels, "left")),
        (True, Column("channels\n× modes", [f"{layer.channels:,} × {layer.modes}" for layer in layers])),
        (True, Column("length\nmedian", length)),
        (True, Column("\nmax", longest)),
        (settings.full, Column("at\n0.1", tenth)),
        (settings.full, Column("held\n50 %", half)),
        (True, Column("held\n90 %", most)),
        (settings.full, Column("accu-\nracy", accuracy)),
        (
            True,
            Column(
                "capacity\nin context",
                [_digits(_median(layer.own.capacity)) if _decays(layer) else "–" for layer in layers],
            ),
        ),
        (True, Column("modes\nleft", left)),
        (layers[0].own.state_dtype != "bf16", Column("\nin bf16", bf16)),
        (settings.full, Column("states\nused", used)),
    ]
    return [column for is_shown, column in columns if is_shown and any(cell != "–" for cell in column.cells)]


def _against_initial(page: Page, layer: CapacityReport, label: str) -> None:
    """Say what training made of the memory: the layer beside its family's initialisations."""
    if layer.initial:
        page.gap()
        page.paragraph(f" layer {label} beside its family's initialisations, medians over channels (or over Δ)")
        page.tables(_compared("", {"this file": layer.own, **layer.initial}), gap=False)


def _other_steps(page: Page, layer: CapacityReport, label: str) -> None:
    if layer.steps:
        page.gap()
        page.paragraph(f" layer {label} with its step Δ scaled: more length costs accuracy")
        page.tables(_compared("Δ ×", {f"{factor:g}": own for factor, own in layer.steps.items()}), gap=False)
    if layer.wanted:
        page.remarks([f"layer {label}: {layer.wanted.sentence}"])


def _compared(heading: str, rows: Mapping[str, CapacitySummary]) -> list[Column]:
    cells = zip(*(_cells(own) for own in rows.values()), strict=True)
    named = zip(_COMPARED, cells, strict=True)
    return [Column(heading, [f"  {name}" for name in rows], "left"), *(Column(name, list(one)) for name, one in named)]


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
    if (one := sum(map(has_one_mode, layers))) and one < len(layers):
        said.append(f"{words.plural(one, 'layer')} of one mode a channel: a running average, which rebuilds no input")
    if bounds := [(own.swallowed or 0.0, k) for k, own in enumerate(layer.own for layer in layers) if own.is_bound]:
        share, most = max(bounds)
        where = f"{100 * share:.0f} % of the numbers of layer {labels[most]}{_others(len(bounds) - 1)}"
        said.append(
            f"rounding to {layers[most].own.state_dtype} swallows a tenth or more of what a step adds in {where}: they "
            "decay more slowly than the weights say, and the modes left are a bound from below, to 0.3 modes"
        )
    if sampled := [layer for layer in layers if layer.own.channels < layer.channels]:
        count = sampled[0].own.channels
        said.append(f"figures are of {words.plural(count, 'channel')} a layer, the slowest among them: --every-channel")
    excluded: Counter[str] = Counter()
    for layer in layers:
        excluded.update(layer.own.excluded)
    said += [
        f"left out: {words.plural(count, 'mode')}, {reason.replace('_', ' ')}" for reason, count in (+excluded).items()
    ]
    judged = [layer.own for layer in layers if _decays(layer)]
    if without := sum(own.without_half for own in judged):
        total = sum(own.channels for own in judged)
        some = "rebuilds not even its" if without == 1 else "rebuild not even their"
        said.append(f"{without:,} of {words.plural(total, 'channel')} {some} present input to one half")
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
