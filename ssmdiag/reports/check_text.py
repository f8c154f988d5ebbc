"""Findings on the screen: the answer, what was found, where, and what to do; last, what the exit code means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.printable import printable_record
from ssmdiag.reports import words
from ssmdiag.reports.answer import answer
from ssmdiag.reports.console import joined, most_lines, styled, wrap
from ssmdiag.reports.finding_lines import finding_lines, named_lines
from ssmdiag.reports.grouping import Group, group_findings
from ssmdiag.reports.interface import Settings
from ssmdiag.reports.several import Several
from ssmdiag.rules.finding import SEVERITIES

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
OPTION = " (--fail-on)"
"""Which option a verdict hangs on; left out where the line would not fit."""
FEW_LINES = 6
"""Lines of a short report at 80 columns, unless what fails the build needs more."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the findings of every checkpoint, and a line on all of them where there are several."""
    return "".join(render_each(results, settings))


def render_each(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    """Yield the findings of one checkpoint, or of several a table row by row, each finding once, and the count."""
    coming = map(printable_record, results)
    some = [one for one in (next(coming, None), None if settings.several else next(coming, None)) if one is not None]
    if len(some) == 1 and not settings.several:
        yield from (joined([line], settings) for line in _single(some[0], settings))
        return
    if not some:
        return
    yield from (joined([line], settings) for line in _several(chain(some, coming), settings))


def _single(result: Diagnosis | Failure, settings: Settings) -> Iterator[str]:
    if isinstance(result, Failure) or (settings.quiet and not result.findings and not result.problems):
        return
    said = answer(result)
    above = [*_paragraph(said.line, settings, said.style), *_paragraph(f"  {result.guess or ''}", settings, "yellow")]
    above += _paragraph(result.chosen or "", settings, "dim")
    for problem in result.problems:
        above += _paragraph(f"  not read: {problem}", settings, "red")
    below = [] if settings.quiet else list(_paragraph(not_judged(result, said.text), settings, "dim"))
    moved = f" ({words.moved(result.source)})" if result.source else ""
    last = f"{_rules(result)} on {words.checkpoint_name(result.path)}{moved}{_known(result)}"
    outcome = f"{_outcome([result.exit_code(settings.fail_on)], settings)}; {last}"
    below += _paragraph(outcome if len(outcome) < settings.width else outcome.replace(OPTION, "", 1), settings)
    yield from above
    yield from _findings(group_findings(result), most_lines(settings, FEW_LINES) - len(above) - len(below), settings)
    yield from below


def _findings(groups: Sequence[Group], room: int, settings: Settings) -> list[str]:
    """Return findings as lines: what fails the build whole, with its advice; of others less where there is no room."""
    fails = {group.worst.code for group in groups if group.worst.rank >= SEVERITIES.index(settings.fail_on)}
    lines: list[str] = []
    for advised, named in ((("error", "warning"), ()), (("error",), ()), (("error",), ("note",))):
        lines, left = [], [one for one in groups if one.worst.severity in named and one.worst.code not in fails]
        for group in (one for one in groups if one not in left):
            advice = settings.full or group.worst.severity in advised or group.worst.code in fails
            lines += finding_lines(group, group.text, settings, advice=advice)
        lines += named_lines(left, settings, also=bool(lines))
        if settings.full or len(lines) <= room:
            break
    return lines


def _several(results: Iterable[Diagnosis | Failure], settings: Settings) -> Iterator[str]:
    table = Several(settings)
    lacking: dict[str, None] = {}
    codes, known = [], 0
    yield table.head()
    for result in results:
        row = table.row(result)
        if isinstance(result, Failure):
            codes.append(2)
            yield row
            continue
        codes.append(result.exit_code(settings.fail_on))
        known += result.known_findings
        lacking[not_judged(result)] = None
        if not settings.quiet or result.findings or result.problems:
            yield row
        for problem in result.problems:
            yield from _paragraph(f"  not read: {problem}", settings, "red")
        yield from _paragraph(f"  {result.guess or ''}", settings, "yellow")
    yield from table.findings()
    if not settings.quiet:
        yield from table.legend()
        for sentence in list(lacking)[:3]:  # nearly always the same, where all are of one run
            yield from _paragraph(sentence, settings, "dim")
    baseline = f"; {known:,} more findings in the baseline" if known else ""
    yield from _paragraph(f"{table.overall()}; {_outcome(codes, settings)}{baseline}", settings)


def _outcome(codes: Sequence[int], settings: Settings) -> str:
    """Return what the exit code of the command means."""
    if 2 in codes:
        return "fails: not everything could be read"
    threshold = settings.fail_on if settings.fail_on == SEVERITIES[-1] else f"{settings.fail_on} or above"
    if 1 in codes:
        which = f" in {codes.count(1):,} of them" if len(codes) > 1 else ""
        return f"fails: findings at {threshold}{which}{OPTION}"
    return f"passes: nothing at {settings.fail_on} or above{OPTION}"


def examined(diagnosis: Diagnosis) -> str:
    """Return by how many rules how much was examined, and what else a baseline knows of."""
    return f"{_rules(diagnosis)} on {words.extent(diagnosis.layers)}{_known(diagnosis)}"


def _rules(diagnosis: Diagnosis) -> str:
    judged = len(diagnosis.rules) - len(diagnosis.not_judged)
    return f"{judged:,} of " * bool(diagnosis.not_judged) + words.plural(len(diagnosis.rules), "rule")


def _known(diagnosis: Diagnosis) -> str:
    return f"; {diagnosis.known_findings:,} more in the baseline" if diagnosis.known_findings else ""


def not_judged(diagnosis: Diagnosis, said: str = "") -> str:
    """Return which rules could not judge, and why; empty where all could. What to do is left out where it is `said`."""
    reasons: dict[str, list[str]] = {}
    for code, reason in diagnosis.not_judged.items():
        why, _, option = reason.partition(": --length")
        reasons.setdefault(why if option and "--length" in said else reason, []).append(code)
    parts = [f"{', '.join(codes)} ({reason})" for reason, codes in reasons.items()]
    return f"not judged: {'; '.join(parts)}" if parts else ""


def _paragraph(text: str, settings: Settings, style: str = "", hanging: int | None = None) -> Iterator[str]:
    return (styled(line, style, settings) for line in wrap(text, settings, hanging))
