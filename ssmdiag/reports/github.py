"""GitHub Actions annotations: one workflow command a line, findings of one rule over layers in one annotation.

GitHub shows the first ten annotations of a kind and step and drops the others, so of more than ten the last one lists
what does not fit. Findings that a baseline knows are counted at the end, not annotated. The last line, for the log
alone, is the verdict of each checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.reports.answer import answer
from ssmdiag.reports.check_text import examined
from ssmdiag.reports.console import carried
from ssmdiag.reports.grouping import group_findings
from ssmdiag.reports.interface import Settings

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis

COMMANDS = True
KINDS = {"error": "error", "warning": "warning", "note": "notice"}
SHOWN = 10
"""Annotations of one kind that GitHub shows for one step."""
LISTED = 50
"""Lines of the annotation that lists the rest."""

Annotation = tuple[str, str, str]
"""File, title, message."""


def render_all(results: Sequence[Diagnosis | Failure], settings: Settings) -> str:
    """Return the annotations, worst first, then a line on each checkpoint."""
    kinds: dict[str, list[Annotation]] = {kind: [] for kind in KINDS.values()}
    verdicts = []
    for result in results:
        if isinstance(result, Failure):
            next_step = f"Next: {result.advice}" if result.advice else ""
            message = " ".join(filter(None, (result.seen, *result.details, next_step)))
            kinds["error"].append((result.path, "not diagnosed", message))
            continue
        kinds["error"] += [(result.path, "not read", problem) for problem in result.problems]
        kinds["warning"] += [(result.path, "a guess", result.guess)] if result.guess else []
        for group in group_findings(result):
            worst = group.worst
            title = f"{worst.code} {worst.rule}"
            message = f"{group.text}.\nNext: {worst.advice}\nssmdiag explain {worst.code}"
            kinds[KINDS[worst.severity]].append((result.path, title, message))
        verdicts.append(f"{result.path}: {answer(result).line}; {examined(result)}")
    lines = [_command(kind, *one) for kind, some in kinds.items() for one in _fit(some)]
    # A line of the log must not pass for a command: GitHub looks for :: at its start.
    lines += [f"ssmdiag: {' '.join(line.splitlines())}" for line in verdicts]
    return carried("\n".join(lines) + "\n", settings)


def _fit(annotations: Sequence[Annotation]) -> list[Annotation]:
    """Return at most as many annotations as are shown, the last of them listing the rest."""
    if len(annotations) <= SHOWN:
        return list(annotations)
    first, rest = list(annotations[: SHOWN - 1]), annotations[SHOWN - 1 :]
    listed = [f"{file}: {title}: {message.splitlines()[0]}" for file, title, message in rest[:LISTED]]
    if len(rest) > LISTED:
        listed.append(f"and {len(rest) - LISTED:,} more, which --format text shows")
    return [*first, ("", f"{len(rest):,} more", "\n".join(listed))]


def _command(kind: str, file: str, title: str, message: str) -> str:
    properties = [f"{name}={_property(value)}" for name, value in (("file", file), ("title", title)) if value]
    return f"::{kind} {','.join(properties)}::{_data(message)}"


def _data(text: str) -> str:
    """Escape what a runner reads in a message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """Escape what a runner reads in a property."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")
