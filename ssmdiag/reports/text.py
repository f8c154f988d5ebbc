"""The screen: answer first, then the table, pictures, assumptions and what is missing."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssmdiag.errors import Failure, message_lines
from ssmdiag.reports import words
from ssmdiag.reports.check_text import finding_lines, not_judged
from ssmdiag.reports.console import carried, close_console, open_console
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
    out = open_console(settings)
    broken = any(layer.unstable or layer.nonfinite or layer.marginal for layer in diagnosis.layers)
    _line(out, _header(diagnosis), "bold")
    if diagnosis.guess:
        _line(out, f"{words.capitalised(diagnosis.guess)}.", "bold yellow")
    _line(out, words.answer(diagnosis, labels), "bold red" if broken or diagnosis.problems else "bold green")
    for problem in diagnosis.problems:
        _line(out, f"not read: {problem}", "red", indent=2)
    if not settings.quiet and diagnosis.layers:
        rows = fold(diagnosis.layers, labels, all_layers=settings.all_layers)
        out.print()
        out.print(_table(diagnosis, rows, settings))
        if settings.plots:
            by_name = dict(zip((layer.name for layer in diagnosis.layers), labels, strict=True))
            _pictures(out, diagnosis, rows, by_name, settings)
        remarks = [*_laws(diagnosis, rows, settings), *_remarks(diagnosis, labels, settings)]
        if remarks:
            out.print()
        for remark in remarks:
            _line(out, remark, "", indent=2)
    _findings(out, diagnosis, settings)
    return close_console(out, settings)


def _header(diagnosis: Diagnosis) -> str:
    titles: dict[str, list[bool]] = {}
    for layer in diagnosis.layers:
        titles.setdefault(layer.title, []).append(True)
    families = " + ".join(f"{title}, {words.plural(len(count), 'layer')}" for title, count in titles.items())
    step = f"  step {diagnosis.train_step:,}" if diagnosis.train_step is not None else ""
    read = f"reads {words.share_read(diagnosis.bytes_read, diagnosis.size)}"
    name = words.checkpoint_name(diagnosis.path)
    return f"{name}{step}  {families or 'no layer read'}  {read}  {diagnosis.device} {diagnosis.seconds:.1f} s"


def _table(diagnosis: Diagnosis, rows: Sequence[Row], settings: Settings) -> Table:
    several = len({row.first.title for row in rows}) > 1
    # At 80 columns the family and the law displace other columns; the strip below still shows the time constants.
    memory = any(row.first.decay for row in rows)
    wide = settings.width >= 100 or not (several or memory)
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=False)
    table.add_column("layer", no_wrap=True, overflow="fold")
    if several:
        table.add_column("family", no_wrap=True)
    table.add_column("channels\n× modes", justify="right", no_wrap=True)
    table.add_column("half-life\nmedian", justify="right", no_wrap=True)
    table.add_column("\nslowest", justify="right", no_wrap=True)
    if wide:
        table.add_column(f"{'τ' if settings.unicode else 'tau'} steps\nslowest", justify="right", no_wrap=True)
    table.add_column("margin\n1−|λ̄|" if settings.unicode else "margin\n1-|l|", justify="right", no_wrap=True)
    if memory:
        table.add_column("horizon\nlongest", justify="right", no_wrap=True)
        table.add_column("law,\nover lags", no_wrap=True)
    if wide or not memory:
        table.add_column("stored", no_wrap=True)
    kinds = {layer.time_invariant for layer in diagnosis.layers}
    decay = wide or not memory or len(kinds) > 1 or any(map(_broken, rows))  # else the remarks name what is nominal
    if decay:
        table.add_column("decay", no_wrap=True)
    if settings.verbose:
        table.add_column("module", overflow="fold")
    for row in rows:
        first = row.first
        cells = [row.label]
        if several:
            cells.append(first.title)
        cells += [
            f"{first.channels:,} × {first.modes}",
            words.steps(row.median_half_life),
            words.steps(row.longest_half_life),
        ]
        if wide:
            cells.append(words.steps(row.longest_time_constant))
        cells.append(words.margin(row.margin))
        cells += [words.steps(row.longest_horizon), row.law] if memory else []
        cells += [SHORT_DTYPES.get(first.dtype, first.dtype)] if wide or not memory else []
        if decay:
            what = "exact" if first.time_invariant else "nominal"
            cells.append(what + _broken(row) if wide or len(kinds) > 1 else _broken(row).removeprefix(", ") or what)
        if settings.verbose:
            cells.append(first.name)
        table.add_row(*(Text(cell) for cell in cells), style="red" if _broken(row) else "")
    return table


def _laws(diagnosis: Diagnosis, rows: Sequence[Row], settings: Settings) -> Iterable[str]:
    """Say how each row's farthest layer forgets, and over which lags; of many rows, the farthest three."""
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT

    known = [row for row in rows if row.farthest.decay]
    if known and diagnosis.context_length is None:
        yield f"laws are looked for over {DEFAULT_CONTEXT:,} steps, as the context is unknown: --length sets it"
    farthest = sorted(known, key=lambda row: -(row.longest_horizon or 0.0))
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


def _findings(out: Console, diagnosis: Diagnosis, settings: Settings) -> None:
    if not diagnosis.rules:
        return
    lines = list(finding_lines(diagnosis, settings))
    if not settings.quiet:
        out.print()
    for line in lines:
        out.print(Text.from_ansi(line), no_wrap=True, overflow="ignore", crop=False)
    modes = sum(layer.channels * layer.modes for layer in diagnosis.layers)
    found = f"{count_findings(diagnosis.findings)} in {words.plural(len(diagnosis.layers), 'layer')}, "
    found += words.plural(modes, "mode")
    if diagnosis.findings:
        found += f"    next: ssmdiag explain {diagnosis.findings[0].code}"
    if lines or not settings.quiet:
        _line(out, found, "")
    if not settings.quiet and (lacking := not_judged(diagnosis)):
        _line(out, lacking, "dim")


def _broken(row: Row) -> str:
    """Say what is wrong with a row's modes, if anything is."""
    counts = {
        "grow": sum(layer.unstable for layer in row.layers),
        "flat": sum(layer.marginal for layer in row.layers),
        "NaN": sum(layer.nonfinite for layer in row.layers),
    }
    return "".join(f", {words.brief(count)} {what}" for what, count in counts.items() if count)


def _pictures(
    out: Console, diagnosis: Diagnosis, rows: Sequence[Row], labels: Mapping[str, str], settings: Settings
) -> None:
    from ssmdiag.assessment.spectrum import BINS_PER_DECADE, FIRST_DECADE

    strip = time_constant_strip(rows, diagnosis.context_length, FIRST_DECADE, BINS_PER_DECADE, settings)
    if strip:
        out.print()
        _line(out, "time constants τ in steps: share of a layer's modes per quarter decade", "", indent=1)
        for line in strip:
            out.print(Text(line), no_wrap=True, overflow="crop")
    picture = disc(rows, settings)
    if picture:
        out.print()
        for line in picture:
            out.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    farthest = max(rows, key=lambda row: row.longest_horizon or 0.0)
    decay = farthest.farthest.decay
    if decay and decay.envelope:
        out.print()
        what = "kernel" if farthest.farthest.time_invariant else "retention"
        for line in decay_picture(decay, f"{what} of layer {labels[farthest.farthest.name]}: ", settings):
            out.print(Text.from_ansi(line), no_wrap=True, overflow="crop")


def _remarks(diagnosis: Diagnosis, labels: Sequence[str], settings: Settings) -> Iterable[str]:
    points = dict.fromkeys(layer.operating_point for layer in diagnosis.layers if not layer.time_invariant)
    for point in points:
        yield f"nominal: the decay depends on the input; this is its value with {point}. Weights alone say no more."
    yield from _assumptions(diagnosis.alternatives)
    noted: dict[str, list[str]] = {}
    for layer, label in zip(diagnosis.layers, labels, strict=True):
        for note in layer.notes:
            noted.setdefault(note, []).append(label)
    for note, where in noted.items():
        everywhere = len(where) == len(diagnosis.layers)
        some = ", ".join(where[:4]) + (" …" if len(where) > 4 else "")
        yield note if everywhere else f"layer{'s' * (len(where) > 1)} {some}: {note}"
    yield from diagnosis.notes
    if diagnosis.unrecognised:
        some = ", ".join(diagnosis.unrecognised[:3]) + (" …" if len(diagnosis.unrecognised) > 3 else "")
        yield f"{words.plural(len(diagnosis.unrecognised), 'tensor')} that look recurrent and were not used: {some}"
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
    lines = message_lines(seen, failure.expected, failure.advice, failure.details, failure.sample)
    return carried("\n".join(lines) + "\n", settings)


def _line(out: Console, text: str, style: str, indent: int = 0) -> None:
    """Print a paragraph with a hanging indent; paths and brackets are printed literally."""
    margin = " " * indent
    wrapped = textwrap.wrap(
        text,
        out.width - 1,
        initial_indent=margin,
        subsequent_indent=margin + ("  " if indent else ""),
        break_long_words=True,
        break_on_hyphens=False,
    )
    for line in wrapped or [""]:
        out.print(Text(line, style=style), no_wrap=True, overflow="ignore", crop=False)
