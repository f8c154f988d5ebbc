"""Findings on the screen: the verdict of each checkpoint, then what was found, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.console import joined, styled, wrap
from ssmdiag.reports.grouping import Group, count_findings, group_findings
from ssmdiag.reports.interface import Settings

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
INDENT = 16
"""Columns of code and severity; 80 columns leave 64 for the sentence."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the findings of every checkpoint, and a line on all of them where there are several."""
    return "".join(render_each(results, settings))


def render_each(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield the findings of each checkpoint, and a line on all of them where there are several."""
    diagnoses: list[Diagnosis] = []
    failed, last = 0, ""
    for result in map(printable_record, results):
        if isinstance(result, Failure):
            failed += 1
            continue
        diagnoses.append(result)
        yield from (joined([line], settings) for line in _block(result, settings))
        if not settings.quiet and (lacking := not_judged(result)) != last:  # once, where all of a folder lack the same
            last = lacking
            yield from (joined([line], settings) for line in _paragraph(f"  {lacking}", settings, "dim"))
    if len(diagnoses) + failed > 1:
        yield joined([_overall(diagnoses, failed)], settings)


def finding_lines(diagnosis: Diagnosis, settings: Settings) -> Iterator[str]:
    """Yield the findings of one checkpoint, folded over layers, each with its advice."""
    for group in group_findings(diagnosis):
        yield from _finding(group, settings)


def verdict(diagnosis: Diagnosis) -> str:
    """Return one line: what was found, and how much was examined."""
    judged = len(diagnosis.rules) - len(diagnosis.not_judged)
    rules = f"{judged:,} of " * bool(diagnosis.not_judged) + words.plural(len(diagnosis.rules), "rule")
    looked = f"{rules} on {words.extent(diagnosis.layers)}"
    known = f"; {diagnosis.known_findings:,} more in the baseline" if diagnosis.known_findings else ""
    found = count_findings(diagnosis.findings)
    guess = " – a guess" if diagnosis.guess else ""
    if diagnosis.problems:
        return f"partly read ({words.plural(len(diagnosis.problems), 'problem')}), {found}{guess}"
    return (f"{found}{known}: {looked}" if diagnosis.findings else f"clean: {looked}{known}") + guess


def not_judged(diagnosis: Diagnosis) -> str:
    """Return which rules could not judge, and why; empty where all could."""
    reasons: dict[str, list[str]] = {}
    for code, reason in diagnosis.not_judged.items():
        reasons.setdefault(reason, []).append(code)
    parts = [f"{', '.join(codes)} ({reason})" for reason, codes in reasons.items()]
    return f"not judged: {'; '.join(parts)}" if parts else ""


def _block(diagnosis: Diagnosis, settings: Settings) -> Iterator[str]:
    if settings.quiet and not diagnosis.findings and not diagnosis.problems:
        return
    worst = COLOURS[diagnosis.findings[0].severity] if diagnosis.findings else "green"
    moved = f" ({words.moved(diagnosis.source)})" if diagnosis.source else ""
    head = f"{diagnosis.path}: {verdict(diagnosis)}{moved}"
    yield from _paragraph(head, settings, "bold red" if diagnosis.problems else worst, hanging=2)
    yield from _paragraph(f"  {diagnosis.guess or ''}", settings, "yellow")
    for problem in diagnosis.problems:
        yield from _paragraph(f"  not read: {problem}", settings, "red")
    yield from finding_lines(diagnosis, settings)


def _finding(group: Group, settings: Settings) -> Iterator[str]:
    worst, indent = group.worst, " " * INDENT
    first, *others = wrap(f"{indent}{group.text}.", settings, hanging=0)
    head = f"{f'{worst.code} {worst.severity}':<{INDENT}}"
    yield styled(head, COLOURS[worst.severity], settings) + first[INDENT:]
    yield from others
    if not settings.quiet:
        yield from _paragraph(indent + words.capitalised(worst.advice), settings, "dim", hanging=0)


def _overall(diagnoses: Sequence[Diagnosis], failed: int) -> str:
    findings = [finding for diagnosis in diagnoses for finding in diagnosis.findings]
    clean = sum(not diagnosis.findings and not diagnosis.problems for diagnosis in diagnoses)
    text = f"{words.plural(len(diagnoses) + failed, 'checkpoint')}: {clean:,} clean, {count_findings(findings)}"
    return text + (f", {failed:,} could not be read" if failed else "")


def _paragraph(text: str, settings: Settings, style: str, hanging: int | None = None) -> Iterator[str]:
    return (styled(line, style, settings) for line in wrap(text, settings, hanging))
