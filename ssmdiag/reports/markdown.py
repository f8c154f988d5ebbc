"""Markdown for a step summary or a comment: verdict first, then one table of findings a checkpoint, folded by rule.

GitHub refuses a summary of more than 1 MiB a step. Of what would go beyond `MOST_BYTES` the folded parts are left
out first, then whole checkpoints, and the end says how many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.reports import words
from ssmdiag.reports.answer import answer
from ssmdiag.reports.check_text import examined, not_judged
from ssmdiag.reports.console import carried
from ssmdiag.reports.folding import fold, label_layers
from ssmdiag.reports.grouping import Group, group_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.several import Several

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

TAILS = True
MOST_BYTES = 900_000
"""Of 1,048,576, as other steps of the same job may add theirs."""
MOST_FOLDED = 200
"""Findings of one rule listed one by one."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return one document: the verdict of all, then a section for each checkpoint."""
    head = _head(results)
    kept: list[str] = []
    room = MOST_BYTES - _bytes(head)
    for result in results:
        if (section := _fit(result, settings, room, alone=len(results) == 1)) is None:
            left = words.plural(len(results) - len(kept), "checkpoint")
            kept.append(f"*{left} left out: a step summary holds no more.*\n")
            break
        kept.append(section)
        room -= _bytes(section) + 1
    return carried("\n".join([head, *kept]), settings)


def code(text: str, *, cell: bool = True) -> str:
    """Return text as a code span, by default one that stands in a cell of a table.

    >>> code("a|b"), code("`x`"), code("")
    ('`a\\\\|b`', '`` `x` ``', '')
    """
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    if not plain or (cell and r"\|" in plain):  # a backslash before a bar cannot stand in a code span of a table
        return escape(plain)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    span = f"{fence}{space}{plain}{space}{fence}"
    return span.replace("|", r"\|") if cell else span


def escape(text: str) -> str:
    r"""Return text of one line in which nothing is markup.

    >>> escape("a_b | <c> *")
    'a\\_b \\| &lt;c&gt; \\*'
    """
    plain = " ".join(re.sub(r"[\x00-\x1f\x7f]", " ", text).split())
    marked = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", plain)
    # A name with an at sign is no user to be called, and an address no link.
    marked = marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    return re.sub("(?i)(?<=www)[.]", "&#46;", marked.replace("://", ":&#47;&#47;"))


def _fit(result: Diagnosis | Failure, settings: Settings, room: int, *, alone: bool) -> str | None:
    """Return a section of at most so many bytes, without its folded parts where they are too much, or None."""
    if isinstance(result, Failure):
        versions = [_failure(result)]
    else:
        versions = [_section(result, settings, folds=folds, alone=alone) for folds in (True, False)]
    return next((text for text in map("\n".join, versions) if _bytes(text) < room), None)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _head(results: Sequence[Diagnosis | Failure]) -> str:
    """Return the first line: the verdict of one checkpoint, or the count over several."""
    if len(results) == 1:
        result = results[0]
        said = "Could not be diagnosed" if isinstance(result, Failure) else answer(result).line
        return f"**{escape(said)}** – {code(words.checkpoint_name(result.path), cell=False)}\n"
    table = Several(Settings())
    for result in results:
        table.row(result)
    return f"**{table.overall()}**\n"


def _failure(failure: Failure) -> Iterator[str]:
    yield f"### {code(failure.path, cell=False)}\n"
    yield f"Not diagnosed: {escape(failure.seen)}"
    yield from (f"- {escape(line)}" for line in failure.details)
    if failure.expected:
        yield f"Expected: {escape(failure.expected)}"
    if failure.advice:
        yield f"Next: {escape(failure.advice)}"
    yield ""


def _section(diagnosis: Diagnosis, settings: Settings, *, folds: bool, alone: bool) -> Iterator[str]:
    labels = label_layers([layer.name for layer in diagnosis.layers])
    yield f"### {code(diagnosis.path, cell=False)}\n"
    if diagnosis.guess:
        yield f"**{escape(words.capitalised(diagnosis.guess))}.**\n"
    yield f"{escape('' if alone else f'{answer(diagnosis).line}; ')}{escape(examined(diagnosis))}\n"
    if diagnosis.problems:
        yield "Not read:\n"
        yield from _list(diagnosis.problems)
    groups = group_findings(diagnosis)
    if groups:
        yield "| rule | severity | where | what was seen | what to do |"
        yield "|---|---|---|---|---|"
        yield from (_row(group) for group in groups)
        yield ""
    if lacking := not_judged(diagnosis):
        yield f"{escape(words.capitalised(lacking))}\n"
    if not folds:
        yield "*Each layer's findings are left out: a step summary holds no more.*\n"
        return
    for group in groups:
        if len(group.findings) > 1:
            rows = [[code(f.where), code(f.tensor or ""), escape(f.message)] for f in group.findings]
            summary = f"{group.worst.code}, {len(rows):,} findings"
            yield from _details(summary, _table(["layer", "tensor", "what was seen"], rows))
    if diagnosis.known:
        rows = [[f.code, f.severity, code(f.where), escape(f.message)] for f in diagnosis.known]
        summary = f"{words.plural(len(rows), 'finding')} in the baseline"
        yield from _details(summary, _table(["rule", "severity", "layer", "what was seen"], rows))
    yield from _details("layers", _layers(diagnosis, labels, settings))


def _row(group: Group) -> str:
    worst = group.worst
    state = f" ({worst.baseline})" if worst.baseline else ""
    where = escape(group.where or "the checkpoint") + (f", worst {escape(group.worst_label)}" * bool(group.worst_label))
    cells = [f"{worst.code} {code(worst.rule)}{state}", worst.severity, where, escape(worst.message)]
    return f"| {' | '.join(cells)} | {escape(worst.advice)} |"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table of the first rows, and how many there are besides."""
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows[:MOST_FOLDED])
    if len(rows) > MOST_FOLDED:
        yield f"| … |{' |' * (len(heads) - 2)} {len(rows) - MOST_FOLDED:,} more |"


def _layers(diagnosis: Diagnosis, labels: Sequence[str], settings: Settings) -> Iterator[str]:
    yield "| layer | family | channels × modes | half-life, median | slowest | margin | horizon, longest | law |"
    yield "|---|---|--:|--:|--:|--:|--:|---|"
    for row in fold(diagnosis.layers, labels, all_layers=settings.all_layers):
        cells = [
            escape(row.label), escape(row.first.title), f"{row.first.channels:,} × {row.first.modes}",
            words.steps(row.median_half_life), words.steps(row.longest("half_life")), words.margin(row.margin),
            words.steps(row.longest("horizon")), row.law,
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _list(lines: Sequence[str]) -> Iterator[str]:
    yield from (f"- {escape(line)}" for line in lines[:MOST_FOLDED])
    if len(lines) > MOST_FOLDED:
        yield f"- and {len(lines) - MOST_FOLDED:,} more"
    yield ""


def _details(summary: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield lines behind a fold; the empty line makes the table inside a table."""
    yield f"<details><summary>{summary}</summary>\n"
    yield from lines
    yield "\n</details>\n"
