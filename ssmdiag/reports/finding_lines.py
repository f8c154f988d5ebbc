"""Findings as lines: each with its code, its severity and what to do; those for which there is no room, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.reports import words
from ssmdiag.reports.console import styled, wrap
from ssmdiag.rules import known_rules
from ssmdiag.rules.finding import SEVERITIES

if TYPE_CHECKING:
    from ssmdiag.reports.grouping import Group
    from ssmdiag.reports.interface import Settings

COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
INDENT = 16
"""Columns of code and severity; 80 columns leave 64 for the sentence."""
MOST_NAMED = 4
"""Findings that are not shown but have their names; of more the codes say enough."""
FEWEST_TO_INDENT = 60
"""Columns of a screen on which that indent leaves room for sentences."""


def finding_lines(group: Group, text: str, settings: Settings, *, advice: bool = True) -> Iterator[str]:
    """Yield a finding's sentence behind its code and severity, and what to do about it."""
    worst, indent = group.worst, " " * (INDENT if settings.width >= FEWEST_TO_INDENT else 4)
    head = f"{f'{worst.code} {worst.severity}':<{INDENT}}"
    first, *others = wrap(f"{head.replace(' ', '_')}{text}.", settings, hanging=len(indent))
    yield styled(head, COLOURS[worst.severity], settings) + first[INDENT:]
    yield from others
    if advice and not settings.quiet:
        said = wrap(indent + words.capitalised(worst.advice), settings, hanging=0)
        yield from (styled(line, "dim", settings) for line in said)


def named_lines(groups: Sequence[Group], settings: Settings, *, also: bool) -> Iterator[str]:
    """Yield the codes and names of findings that are not shown, worst first; `also`: others are, above."""
    if not groups:
        return
    counts = Counter(group.worst.severity for group in groups)
    count = ", ".join(words.plural(counts[one], one) for one in reversed(SEVERITIES) if counts[one])
    named = len(groups) <= MOST_NAMED
    names = ", ".join(f"{group.worst.code} {group.worst.rule * named}".rstrip() for group in groups)
    if len(groups) == 1:
        code = groups[0].worst.code
        names = next((f"{code}, {rule.summary}" for rule in known_rules() if rule.code == code), names)
    yield from (styled(line, "dim", settings) for line in wrap(f"{'also ' * also}{count}: {names}; --full", settings))
