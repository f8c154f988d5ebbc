"""Several checkpoints as one table: a row for each as soon as it is there, then each finding once, then the count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmdiag.errors import Failure
from ssmdiag.reports import words
from ssmdiag.reports.answer import Status, answer
from ssmdiag.reports.console import carried, styled, wrap
from ssmdiag.reports.finding_lines import finding_lines
from ssmdiag.reports.grouping import Group, group_findings
from ssmdiag.rules.finding import SEVERITIES

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports.interface import Settings

FEWEST_FOR_NAMES = 16
"""Columns of a checkpoint's name, for which others are left out."""


@dataclass
class _Found:
    """One rule's findings of one severity over the checkpoints."""

    worst: Group
    where: str
    count: int
    alike: bool


class Several:
    """The table, row by row, and what is said below it; of each checkpoint only that is kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.count = self._noted = 0
        self._statuses: Counter[Status | None] = Counter()
        self._found: dict[tuple[int, str], _Found] = {}
        self._at_rest = False
        widths = [("answer", 12, "<"), ("step", 9, ">"), ("remembers", 9, ">"), ("findings", 10, "<")]
        room = settings.width - 1
        while sum(width + 2 for _, width, _ in widths) + FEWEST_FOR_NAMES > room and len(widths) > 2:
            widths.remove(next(one for one in widths if one[0] in ("findings", "step")))
        self._widths = widths
        self._room = room - sum(width + 2 for _, width, _ in widths)

    def head(self) -> str:
        """Return the line of headings."""
        return self._line({name: name for name, _, _ in self._widths}, "checkpoint")

    def row(self, result: Diagnosis | Failure) -> str:
        """Return the row of one checkpoint, and count it."""
        self.count += 1
        name = result.given or result.path
        if isinstance(result, Failure):
            self._statuses[None] += 1
            return self._line({"answer": "NOT READ"}, name, "bold red")
        said = answer(result)
        self._statuses[said.status] += 1
        self._noted += said.status == "ok" and bool(result.findings)
        self._at_rest |= any(not layer.time_invariant for layer in result.layers)
        groups = group_findings(result)
        for group in groups:
            self._keep(group, words.checkpoint_name(result.path) if result.given is None else name)
        codes = list(dict.fromkeys(group.worst.code for group in groups))
        reach = max((layer.horizon.max for layer in result.layers if layer.horizon), default=None)
        cells = {
            "answer": said.status.upper(),
            "step": "–" if result.train_step is None else f"{result.train_step:,}",
            "remembers": words.steps(reach),
            "findings": f"{codes[0]}{f' +{len(codes) - 1}' * (len(codes) > 1)}" if codes else "",
        }
        return self._line(cells, name, said.style)

    def findings(self) -> Iterator[str]:
        """Yield each finding once, with where it is worst."""
        for found in (self._found[key] for key in sorted(self._found)):
            of = f"{found.count:,} of {words.plural(self.count, 'checkpoint')}"
            where = "" if found.alike and found.count > 1 else f" (worst: {found.where})" * (found.count > 1)
            text = f"{of}{where}: {found.worst.text}" if found.count > 1 else f"{found.where}: {found.worst.text}"
            advice = self.settings.full or found.worst.worst.severity != "note"
            yield from finding_lines(found.worst, text, self.settings, advice=advice)

    def legend(self) -> Iterator[str]:
        """Yield what the column of numbers is."""
        rest = ", with the gates of selective layers at rest" if self._at_rest else ""
        text = f"remembers: steps until 1 % of the energy is left, in the farthest layer{rest}"
        yield from (styled(line, "dim", self.settings) for line in wrap(text, self.settings))

    def overall(self) -> str:
        """Return one line on all of them."""
        order: tuple[Status | None, ...] = ("ok", "undetermined", "warning", "problem", None)
        names = {"ok": "OK", "undetermined": "undetermined", "warning": "with warnings", "problem": "with problems"}
        said = [f"{self._statuses[one]:,} {names[one] if one else 'not read'}" for one in order if self._statuses[one]]
        if self._noted:
            said[0] += f" ({self._noted:,} with notes)"
        return f"{words.plural(self.count, 'checkpoint')}: {', '.join(said)}"

    def _keep(self, group: Group, name: str) -> None:
        key = (-SEVERITIES.index(group.worst.severity), group.worst.code)
        before = self._found.get(key)
        if before is None:
            self._found[key] = _Found(group, name, 1, True)
            return
        before.count += 1
        before.alike &= before.worst.text == group.text
        if group.badness > before.worst.badness:
            before.worst, before.where = group, name

    def _line(self, cells: dict[str, str], name: str, style: str = "") -> str:
        padded = [f"{cells.get(key, ''):{side}{width}}" for key, width, side in self._widths]
        padded[0] = styled(padded[0], style, self.settings)
        short = name if len(name) <= self._room else f"…{name[len(name) - self._room + 1 :]}"
        return carried("  ".join([*padded, short]), self.settings)
