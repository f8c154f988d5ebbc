"""The screen: the answer, what the file is, findings, the table of layers, one picture; every picture with `full`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ssmdiag.errors import Failure, message_lines
from ssmdiag.printable import first_of, module_name, printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import answer
from ssmdiag.reports.check_text import not_judged
from ssmdiag.reports.console import Column, Page, few, joined, most_lines, wrap
from ssmdiag.reports.finding_lines import finding_lines, named_lines
from ssmdiag.reports.folding import MOST_ROWS, Row, fold, join_labels, label_layers
from ssmdiag.reports.grouping import group_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.pictures import decay_picture, decay_strip, disc, time_constant_strip
from ssmdiag.reports.several import Several

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Alternative, Diagnosis

MOST_SENTENCES = 3
STRIP = "time constants τ in steps: share of a layer's modes per quarter decade"
SHORT_DTYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "complex64": "c64"}


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the report of one checkpoint, or a table of several."""
    return "".join(render_each(results, settings))


def render_each(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield the report of one checkpoint, or of several a table row by row, each finding once, and the count.

    With `full`, one report after another. Failures come last.
    """
    failures: list[Failure] = []

    def noting() -> Iterator[Diagnosis | Failure]:
        for result in results:
            failures.extend([result] if isinstance(result, Failure) else [])
            yield result

    pieces = list(render_read(noting(), settings)) if not settings.several else render_read(noting(), settings)
    shown = False
    for piece in pieces:
        yield piece
        shown = True
    for failure in failures:
        yield f"{chr(10) * shown}{_failure(failure, settings)}"
        shown = True


def render_read(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield what `render_each` does, but only the rows of failures: the command tells of them elsewhere."""
    coming = map(printable_record, results)
    some = [one for one in (next(coming, None), None if settings.several else next(coming, None)) if one is not None]
    if (len(some) == 1 and not settings.several) or settings.full:
        whole = (result for result in chain(some, coming) if not isinstance(result, Failure))
        for number, result in enumerate(whole):
            text = report(result, settings)
            yield f"\n{text}" if number else text
    elif some:
        yield from (joined([line], settings) for line in _several(chain(some, coming), settings))


def _several(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    table = Several(settings)
    yield table.head()
    for result in results:
        yield table.row(result)
        if not isinstance(result, Failure):
            yield from (line for problem in result.problems for line in wrap(f"  not read: {problem}", settings))
            yield from wrap(f"  {result.guess or ''}", settings)
    if not settings.quiet:
        yield from table.findings()
        yield from table.legend()
    yield from wrap(f"{table.overall()}    more: --full, or one of them alone", settings)


NOT_FINITE = "NaN or infinite"
"""How a layer's note on values that are no numbers ends."""


class _Shown(NamedTuple):
    """How much of what it could show a report shows."""

    rows: int = MOST_ROWS
    """Rows of the table, and of the picture of time constants."""
    findings: int | None = None
    """Errors and warnings; the others, and where it is given all notes, are named in one line."""
    advice: bool = True
    """Whether what to do about a warning is among them; else `explain` has it."""
    remarks: int = 100
    """Remarks below the picture, and problems of reading."""
    picture: bool = True


SHORT = (
    *(_Shown(rows=rows) for rows in (4, 3, 2)),
    *(_Shown(rows=rows, findings=4) for rows in (4, 3, 2)),
    _Shown(rows=2, findings=3, remarks=1),
    _Shown(rows=1, findings=3, remarks=1, advice=False),
    _Shown(rows=1, findings=2, remarks=1, advice=False),
    _Shown(rows=1, findings=1, remarks=1, advice=False),
    _Shown(rows=1, findings=1, remarks=1, advice=False, picture=False),
)
"""A short report shows the first of these that fits on a screen."""


def report(diagnosis: Diagnosis, settings: Settings) -> str:
    """Return the report of one checkpoint: answer, file, findings, layers, one picture; all there is with `full`."""
    if settings.full or settings.verbose:
        return _report(diagnosis, settings, _Shown())
    text = ""
    for shown in SHORT:
        text = _report(diagnosis, settings, shown)
        if len(text.splitlines()) <= most_lines(settings) or settings.all_layers:
            break
    return text


def _report(diagnosis: Diagnosis, settings: Settings, shown: _Shown) -> str:
    labels = label_layers([layer.name for layer in diagnosis.layers])
    page, said, full = Page(settings), answer(diagnosis), settings.full or settings.verbose
    page.paragraph(said.line, said.style)
    if diagnosis.guess:
        page.paragraph(f"{words.capitalised(diagnosis.guess)}.", "bold yellow")
    page.paragraph(_file(diagnosis, timed=full), "dim")
    page.paragraph(diagnosis.chosen or "", "dim")
    page.problems(few(diagnosis.problems, shown.remarks, "problem"))
    _findings(page, diagnosis, shown)
    if not settings.quiet and diagnosis.layers:
        rows = fold(diagnosis.layers, labels, all_layers=settings.all_layers, most=shown.rows)
        page.table(_columns(rows, settings), ["red" if _broken(row) else "" for row in rows])
        by_name = dict(zip((layer.name for layer in diagnosis.layers), labels, strict=True))
        if settings.plots and full:
            _pictures(page, diagnosis, rows, by_name)
        elif settings.plots and shown.picture:
            _picture(page, diagnosis, rows, by_name)
        more = [*laws(diagnosis, rows, settings)] if full else []
        page.remarks(few([*more, *remarks(diagnosis, labels, settings)], shown.remarks))
        page.paragraph(not_judged(diagnosis) if full else _more(diagnosis), "dim")
    return page.text()


def _more(diagnosis: Diagnosis) -> str:
    """Return what the short report leaves out, and how to see it."""
    explained = f", ssmdiag explain {diagnosis.findings[0].code}" if diagnosis.findings else ""
    silent = f"; {len(diagnosis.not_judged)} of {words.plural(len(diagnosis.rules), 'rule')} could not judge"
    return f"more: --full{explained}{silent * bool(diagnosis.not_judged)}"


def _file(diagnosis: Diagnosis, *, timed: bool) -> str:
    """Return one line on what the file is."""
    families = words.families(layer.title for layer in diagnosis.layers)
    if diagnosis.attention_layers:
        families += f" + {words.plural(len(diagnosis.attention_layers), 'attention layer')}"
    step = f"  step {diagnosis.train_step:,}" if diagnosis.train_step is not None else ""
    read = f"reads {words.share_read(diagnosis.bytes_read, diagnosis.size)}"
    moved = f", {words.moved(diagnosis.source)}" if diagnosis.source else ""
    name, time = words.checkpoint_name(diagnosis.path), f"  {diagnosis.device} {diagnosis.seconds:.1f} s" * timed
    return f"{name}{step}  {families or 'no layer read'}  {read}{moved}{time}"


def _columns(rows: Sequence[Row], settings: Settings) -> list[Column]:
    several = len({row.first.title for row in rows}) > 1
    memory = any(row.first.decay for row in rows)
    # At 80 columns the law displaces other columns; the strip below still shows the time constants.
    wide = settings.width >= 100 or not memory
    kinds = len({row.first.time_invariant for row in rows}) > 1 or any(map(_broken, rows))
    columns = [
        (True, Column("layer", [row.label for row in rows], "left", overflow="fold")),
        (several, Column("family", [row.first.title for row in rows], "left", spare=2)),
        (True, Column("channels\n× modes", [f"{row.first.channels:,} × {row.first.modes}" for row in rows], spare=4)),
        (True, Column("half-life\nmedian", [words.steps(row.median_half_life) for row in rows])),
        (True, Column("\nslowest", [words.steps(row.longest("half_life")) for row in rows])),
        (wide, Column("τ steps\nslowest", [words.steps(row.longest("time_constant")) for row in rows], spare=7)),
        (True, Column(f"margin\n{words.margin_symbol(settings)}", [words.margin(row.margin) for row in rows], spare=3)),
        (memory, Column("horizon\nlongest", [words.steps(row.longest("horizon")) for row in rows])),
        (memory, Column("law,\nover lags", [row.law for row in rows], "left", spare=5)),
        (wide, Column("stored", [SHORT_DTYPES.get(row.first.dtype, row.first.dtype) for row in rows], "left", spare=8)),
        (True, Column("decay", [_decay(row) for row in rows], "left", spare=1 if kinds else 6)),
    ]
    return [column for shown, column in columns if shown]


def _decay(row: Row) -> str:
    """Return whether a row's decay is exact or holds at rest, and what is wrong with its modes."""
    return ("exact" if row.first.time_invariant else "at rest") + _broken(row)


def laws(diagnosis: Diagnosis, rows: Sequence[Row], settings: Settings) -> Iterable[str]:
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
    # A layer of one mode a channel rebuilds by that mode alone: its capacity says nothing that its half-life does not.
    best = max((row for row in rows if row.farthest.capacity and row.first.modes > 1), key=_rebuilt, default=None)
    if best is not None and best.farthest.capacity is not None:
        one = "" if len(best.layers) == 1 else ", the slowest of them"
        yield f"layer {best.label}{one}: {best.farthest.capacity.sentence}"
    sampled = [sum(r.farthest.decay.counts.values()) for r in known if r.farthest.decay]
    if any(count < row.first.channels for count, row in zip(sampled, known, strict=True)):
        what = "laws are" if all(row.first.every_horizon for row in known) else "horizons and laws are"
        most = words.plural(max(sampled), "channel")
        yield f"{what} those of {most} a layer, the slowest among them: --every-channel"


def _rebuilt(row: Row) -> float:
    """Return how far back the median channel of a row's farthest layer rebuilds its input."""
    capacity = row.farthest.capacity
    return capacity.length_half.median if capacity and capacity.length_half else -1.0


def _findings(page: Page, diagnosis: Diagnosis, shown: _Shown) -> None:
    """Write the findings, folded over layers; what to do about notes is in `full` and in `explain`."""
    groups, settings = group_findings(diagnosis), page.settings
    whole = groups
    if shown.findings is not None:
        whole = [group for group in groups if group.worst.severity != "note"][: shown.findings]
    for group in whole:
        advice = settings.full or settings.verbose or (group.worst.severity != "note" and shown.advice)
        page.lines(finding_lines(group, group.text, settings, advice=advice), crop=False)
    page.lines(named_lines(groups[len(whole) :], settings, also=bool(whole)), crop=False)


def _broken(row: Row) -> str:
    """Say what is wrong with a row's modes, if anything is."""
    counts = {
        "grow": sum(layer.unstable for layer in row.layers),
        "flat": sum(layer.marginal for layer in row.layers),
        "NaN": sum(layer.nonfinite for layer in row.layers),
    }
    return "".join(f", {words.brief(count)} {what}" for what, count in counts.items() if count)


def _picture(page: Page, diagnosis: Diagnosis, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    """Write the one picture of the short report: the kernel where one layer decides, else the time constants."""
    from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE

    only = rows[0].farthest if len(diagnosis.layers) == 1 else None
    if only and only.decay and only.decay.envelope:
        what = "kernel" if only.time_invariant else "retention at rest"
        page.picture(decay_strip(only.decay, what, page.settings))
    else:
        strip = time_constant_strip(rows, diagnosis.context_length, FIRST_DECADE, BINS_PER_DECADE, page.settings)
        page.picture(strip, STRIP)


def _pictures(page: Page, diagnosis: Diagnosis, rows: Sequence[Row], labels: Mapping[str, str]) -> None:
    """Write every picture."""
    from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE

    strip = time_constant_strip(rows, diagnosis.context_length, FIRST_DECADE, BINS_PER_DECADE, page.settings)
    page.picture(strip, STRIP)
    page.picture(disc(rows, page.settings))
    farthest = max(rows, key=lambda row: row.longest("horizon") or 0.0).farthest
    if farthest.decay and farthest.decay.envelope:
        what = "kernel" if farthest.time_invariant else "retention"
        page.picture(decay_picture(farthest.decay, f"{what} of layer {labels[farthest.name]}: ", page.settings))


def remarks(diagnosis: Diagnosis, labels: Sequence[str], settings: Settings) -> Iterable[str]:
    """Say what the numbers rest on: gates at rest, assumptions, what layers are known for, what was not used."""
    if settings.full or settings.verbose:
        rest = "at rest: the decay depends on the input; this is its value with {}. Weights alone say no more."
        at_rest = [() if layer.time_invariant else (rest.format(layer.operating_point),) for layer in diagnosis.layers]
        yield from _of_layers(at_rest, labels)
    yield from _assumptions(diagnosis.alternatives)
    told = set()
    if not (settings.full or settings.verbose):  # a finding says the same, and the table counts the modes
        told = {finding.layer for finding in diagnosis.findings if finding.code == "SSM401"}
    notes = [[x for x in one.notes if one.name not in told or not x.endswith(NOT_FINITE)] for one in diagnosis.layers]
    yield from _of_layers(notes, labels)
    yield from diagnosis.notes
    if unused := diagnosis.unrecognised:
        which = "that looks recurrent and was" if len(unused) == 1 else "that look recurrent and were"
        yield f"{words.plural(len(unused), 'tensor')} {which} not used: {first_of(unused)}"
    if settings.verbose:
        for layer in diagnosis.layers:
            yield f"{module_name(layer.name)}: {layer.spelling}; read {', '.join(layer.tensors)}"


def _of_layers(notes: Sequence[Sequence[str]], labels: Sequence[str]) -> Iterator[str]:
    """Yield each of the layers' notes once, with the layers it is of unless it is of all."""
    noted: dict[str, list[str]] = {}
    for some, label in zip(notes, labels, strict=True):
        for note in some:
            noted.setdefault(note, []).append(label)
    for note, where in noted.items():
        everywhere = len(where) == len(labels)
        yield note if everywhere else f"layer{'s' * (len(where) > 1)} {join_labels(where)}: {note}"


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
            f"Slowest half-life {words.plural(as_read, 'step')}; otherwise {readings}. "
            f"Set it with --assume {assumed.option}=…"
        )
    if silent:
        yield f"assumed, with no effect on the slowest half-life: {', '.join(silent)}"


def _failure(failure: Failure, settings: Settings) -> str:
    named = Path(failure.path).name in failure.seen
    seen = failure.seen if named else f"{failure.path}: {failure.seen}"
    return joined(message_lines(seen, failure.expected, failure.advice, failure.details, failure.sample), settings)
