"""The screen: answer first, then the table, pictures, assumptions and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure, message_lines
from ssmdiag.printable import first_of
from ssmdiag.reports import words
from ssmdiag.reports.check_text import finding_lines, not_judged
from ssmdiag.reports.console import Column, Page, joined
from ssmdiag.reports.folding import Row, fold, label_layers
from ssmdiag.reports.grouping import count_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.pictures import decay_picture, disc, time_constant_strip

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Alternative, Diagnosis

MOST_SENTENCES = 3
SHORT_DTYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "complex64": "c64"}


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the reports one after another."""
    return "".join(render_each(results, settings))


def render_each(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield the report of each checkpoint; an empty line goes before all but the first."""
    for number, result in enumerate(results):
        text = _failure(result, settings) if isinstance(result, Failure) else report(result, settings)
        yield f"\n{text}" if number else text


def report(diagnosis: Diagnosis, settings: Settings) -> str:
    """Return the report of one checkpoint."""
    labels = label_layers([layer.name for layer in diagnosis.layers])
    page = Page(settings)
    broken = any(layer.unstable or layer.nonfinite or layer.marginal for layer in diagnosis.layers)
    page.paragraph(_header(diagnosis), "bold")
    if diagnosis.guess:
        page.paragraph(f"{words.capitalised(diagnosis.guess)}.", "bold yellow")
    page.paragraph(words.answer(diagnosis, labels), "bold red" if broken or diagnosis.problems else "bold green")
    page.problems(diagnosis.problems)
    if not settings.quiet and diagnosis.layers:
        rows = fold(diagnosis.layers, labels, all_layers=settings.all_layers)
        page.table(_columns(diagnosis, rows, settings), ["red" if _broken(row) else "" for row in rows])
        if settings.plots:
            by_name = dict(zip((layer.name for layer in diagnosis.layers), labels, strict=True))
            _pictures(page, diagnosis, rows, by_name)
        page.remarks([*_laws(diagnosis, rows, settings), *_remarks(diagnosis, labels, settings)])
    _findings(page, diagnosis)
    return page.text()


def _header(diagnosis: Diagnosis) -> str:
    families = words.families(layer.title for layer in diagnosis.layers)
    step = f"  step {diagnosis.train_step:,}" if diagnosis.train_step is not None else ""
    read = f"reads {words.share_read(diagnosis.bytes_read, diagnosis.size)}"
    moved = f", {words.moved(diagnosis.source)}" if diagnosis.source else ""
    name = words.checkpoint_name(diagnosis.path)
    return f"{name}{step}  {families or 'no layer read'}  {read}{moved}  {diagnosis.device} {diagnosis.seconds:.1f} s"


def _columns(diagnosis: Diagnosis, rows: Sequence[Row], settings: Settings) -> list[Column]:
    several = len({row.first.title for row in rows}) > 1
    # At 80 columns the family and the law displace other columns; the strip below still shows the time constants.
    memory = any(row.first.decay for row in rows)
    wide = settings.width >= 100 or not (several or memory)
    kinds = {layer.time_invariant for layer in diagnosis.layers}
    decay = wide or not memory or len(kinds) > 1 or any(map(_broken, rows))  # else the remarks name what is nominal
    said = wide or len(kinds) > 1
    columns = [
        (True, Column("layer", [row.label for row in rows], "left", overflow="fold")),
        (several, Column("family", [row.first.title for row in rows], "left")),
        (True, Column("channels\n× modes", [f"{row.first.channels:,} × {row.first.modes}" for row in rows])),
        (True, Column("half-life\nmedian", [words.steps(row.median_half_life) for row in rows])),
        (True, Column("\nslowest", [words.steps(row.longest("half_life")) for row in rows])),
        (wide, Column("τ steps\nslowest", [words.steps(row.longest("time_constant")) for row in rows])),
        (True, Column(f"margin\n{words.margin_symbol(settings)}", [words.margin(row.margin) for row in rows])),
        (memory, Column("horizon\nlongest", [words.steps(row.longest("horizon")) for row in rows])),
        (memory, Column("law,\nover lags", [row.law for row in rows], "left")),
        (
            wide or not memory,
            Column("stored", [SHORT_DTYPES.get(row.first.dtype, row.first.dtype) for row in rows], "left"),
        ),
        (decay, Column("decay", [_decay(row, said) for row in rows], "left")),
        (settings.verbose, Column("module", [row.first.name for row in rows], "left", wraps=True, overflow="fold")),
    ]
    return [column for shown, column in columns if shown]


def _decay(row: Row, said: bool) -> str:
    """Return whether a row's decay is exact or nominal, and what is wrong with its modes; `said`: always both."""
    what = "exact" if row.first.time_invariant else "nominal"
    return what + _broken(row) if said else _broken(row).removeprefix(", ") or what


def _laws(diagnosis: Diagnosis, rows: Sequence[Row], settings: Settings) -> Iterable[str]:
    """Say how each row's farthest layer forgets, and over which lags; of many rows, the farthest three."""
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT

    known = [row for row in rows if row.farthest.decay]
    if known and diagnosis.context_length is None:
        yield f"laws are looked for over {DEFAULT_CONTEXT:,} steps, as the context is unknown: --length sets it"
    farthest = sorted(known, key=lambda row: -(row.longest("horizon") or 0.0))
    said = known if settings.verbose else [row for row in known if row in farthest[:MOST_SENTENCES]]
    for row in said:
        assert row.farthest.decay is not None
        one = "" if len(row.layers) == 1 else ", the slowest of them"
        yield f"layer {row.label}{one}: {row.farthest.decay.sentence}"
    best = max((row for row in rows if row.farthest.capacity), key=_rebuilt, default=None)
    if best is not None and best.farthest.capacity is not None:
        one = "" if len(best.layers) == 1 else ", the slowest of them"
        yield f"layer {best.label}{one}: {best.farthest.capacity.sentence}"
    sampled = [sum(r.farthest.decay.counts.values()) for r in known if r.farthest.decay]
    if any(count < row.first.channels for count, row in zip(sampled, known, strict=True)):
        what = "laws are" if all(row.first.every_horizon for row in known) else "horizons and laws are"
        yield f"{what} those of {max(sampled)} channels a layer, the slowest among them: --every-channel"


def _rebuilt(row: Row) -> float:
    """Return how far back the median channel of a row's farthest layer rebuilds its input."""
    capacity = row.farthest.capacity
    return capacity.length_half.median if capacity and capacity.length_half else -1.0


def _findings(page: Page, diagnosis: Diagnosis) -> None:
    if not diagnosis.rules:
        return
    lines, quiet = list(finding_lines(diagnosis, page.settings)), page.settings.quiet
    if not quiet:
        page.gap()
    page.lines(lines, crop=False)
    if lines or not quiet:
        more = f"    next: ssmdiag explain {diagnosis.findings[0].code}" if diagnosis.findings else ""
        page.paragraph(f"{count_findings(diagnosis.findings)} in {words.extent(diagnosis.layers)}{more}")
    if not quiet:
        page.paragraph(not_judged(diagnosis), "dim")


def _broken(row: Row) -> str:
    """Say what is wrong with a row's modes, if anything is."""
    counts = {
        "grow": sum(layer.unstable for layer in row.layers),
        "flat": sum(layer.marginal for layer in row.layers),
        "NaN": sum(layer.nonfinite for layer in row.layers),
    }
    return "".join(f", {words.brief(count)} {what}" for what, count in counts.items() if count)


def _pictures(page: Page, diagnosis: Diagnosis, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE

    strip = time_constant_strip(rows, diagnosis.context_length, FIRST_DECADE, BINS_PER_DECADE, page.settings)
    page.picture(strip, "time constants τ in steps: share of a layer's modes per quarter decade")
    page.picture(disc(rows, page.settings))
    farthest = max(rows, key=lambda row: row.longest("horizon") or 0.0).farthest
    if farthest.decay and farthest.decay.envelope:
        what = "kernel" if farthest.time_invariant else "retention"
        page.picture(decay_picture(farthest.decay, f"{what} of layer {labels[farthest.name]}: ", page.settings))


def _remarks(diagnosis: Diagnosis, labels: Sequence[str], settings: Settings) -> Iterable[str]:
    for point in dict.fromkeys(layer.operating_point for layer in diagnosis.layers if not layer.time_invariant):
        yield f"nominal: the decay depends on the input; this is its value with {point}. Weights alone say no more."
    yield from _assumptions(diagnosis.alternatives)
    noted: dict[str, list[str]] = {}
    for layer, label in zip(diagnosis.layers, labels, strict=True):
        for note in layer.notes:
            noted.setdefault(note, []).append(label)
    for note, where in noted.items():
        everywhere = len(where) == len(diagnosis.layers)
        yield note if everywhere else f"layer{'s' * (len(where) > 1)} {first_of(where, 4)}: {note}"
    yield from diagnosis.notes
    if diagnosis.unrecognised:
        tensors = words.plural(len(diagnosis.unrecognised), "tensor")
        yield f"{tensors} that look recurrent and were not used: {first_of(diagnosis.unrecognised)}"
    if settings.verbose:
        for layer in diagnosis.layers:
            yield f"{layer.name}: {layer.spelling}; read {', '.join(layer.tensors)}"


def _assumptions(alternatives: Sequence[Alternative]) -> Iterable[str]:
    """Say what was assumed, and what the slowest mode would be under the other readings."""
    silent = []
    for alternative in alternatives:
        assumed = alternative.assumption
        as_read = words.steps(alternative.slowest)
        others = [(value, words.steps(longest)) for value, longest in alternative.others if longest is not None]
        if all(longest == as_read for _, longest in others):
            silent.append(f"{assumed.option} = {assumed.value}")
            continue
        readings = ", ".join(f"{value} {longest}" for value, longest in others)
        yield (
            f"assumed: {assumed.option} = {assumed.value} ({assumed.meaning}); nothing in the file says. "
            f"Slowest half-life {as_read} steps; otherwise {readings}. Set it with --assume {assumed.option}=…"
        )
    if silent:
        yield f"assumed, with no effect on the slowest half-life: {', '.join(silent)}"


def _failure(failure: Failure, settings: Settings) -> str:
    named = Path(failure.path).name in failure.seen
    seen = failure.seen if named else f"{failure.path}: {failure.seen}"
    return joined(message_lines(seen, failure.expected, failure.advice, failure.details, failure.sample), settings)
