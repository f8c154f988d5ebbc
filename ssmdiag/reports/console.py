"""What is written on a screen: paragraphs, tables and pictures at its width, in the colours and characters it has."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from ssmdiag.reports import words

if TYPE_CHECKING:
    from ssmdiag.reports.interface import Settings


class Column(NamedTuple):
    """A column of a table: its heading, and a cell for each row."""

    heading: str
    cells: Sequence[str]
    justify: Literal["left", "right"] = "right"
    wraps: bool = False
    overflow: Literal["fold", "ellipsis"] = "ellipsis"
    most: int | None = None
    """Widest, in columns of the screen."""
    spare: int = 0
    """Where a table is too wide, the column with the highest number is left out first; never one with 0."""


MOST_LINES = 22
"""Lines of a short report at 80 columns: it is read without scrolling."""


def most_lines(settings: Settings, wide: int = MOST_LINES) -> int:
    """Return how many lines a short report may have; more where the screen is so narrow that it has to wrap more."""
    return wide * 80 // min(settings.width, 80)


def carried(text: str, settings: Settings) -> str:
    """Return the text in characters that the output carries."""
    return text if settings.unicode else words.in_ascii(text)


def joined(lines: Iterable[str], settings: Settings) -> str:
    """Return lines as one text, without trailing blanks, in characters that the output carries."""
    return carried("\n".join(line.rstrip() for line in lines) + "\n", settings)


def wrap(text: str, settings: Settings, hanging: int | None = None) -> list[str]:
    """Return a paragraph as lines that fit, indented as its first line is.

    `hanging`: by how much more all but the first line are indented; where it is not given, 2 if the first is at all.
    """
    text = carried(text, settings)
    lead = text[: len(text) - len(text.lstrip())]
    after = lead + " " * ((2 if lead else 0) if hanging is None else hanging)
    room = max(settings.width - 1 - len(after), 1)
    lines: list[str] = []
    line = lead
    for space, word in re.findall(r"(\s*)(\S+)", text.strip()):
        for number, piece in enumerate(_pieces(word, room)):
            gap = "" if number or not line.strip() else space
            if line.strip() and len(line) + len(gap) + len(piece) > settings.width - 1:
                lines.append(line)
                line, gap = after, ""
            line += gap + piece
    return [*lines, line] if line.strip() else lines


def _pieces(word: str, room: int) -> list[str]:
    """Return a word in pieces that fit, broken after the separators of paths and names, between letters only at need.

    >>> _pieces("backbone.layers.0.mixer", 16), _pieces("model", 3)
    (['backbone.layers.', '0.mixer'], ['mod', 'el'])
    """
    pieces: list[str] = []
    while len(word) > room:
        at = max(word.rfind(mark, 0, room) for mark in "./_=,-") + 1 or room
        while at > 1 and word[at] == ":":  # a line that begins with :: could be a command
            at -= 1
        pieces.append(word[:at])
        word = word[at:]
    return [*pieces, word]


def styled(text: str, style: str, settings: Settings) -> str:
    """Return the text with the codes of its style, where the output has colours."""
    if not (settings.colour and style):
        return text
    from rich.color import ColorSystem  # rich takes a while to import, and `check` without colour does not need it
    from rich.style import Style

    return Style.parse(style).render(text, color_system=ColorSystem.STANDARD)


def _width(column: Column) -> int:
    """Return how wide a column is drawn, in columns of the screen."""
    from rich.cells import cell_len

    wide = max(map(cell_len, [*column.heading.split("\n"), *column.cells]))
    return min(wide, column.most or wide)


def few(remarks: Sequence[str], most: int, noun: str = "remark") -> list[str]:
    """Return the first of many remarks, and how many more there are."""
    if len(remarks) <= most:
        return list(remarks)
    more = len(remarks) - most + 1
    return [*remarks[: most - 1], f"{words.plural(more, f'more {noun}' if most > 1 else noun)}: --full"]


class Page:
    """A report on the screen, written from top to bottom."""

    def __init__(self, settings: Settings) -> None:
        from rich.console import Console

        self.settings = settings
        self._file = io.StringIO()
        self._out = Console(
            file=self._file,
            width=settings.width,
            height=25,  # else it reads LINES, and fails where that is not a number
            force_terminal=settings.colour,
            color_system="standard" if settings.colour else None,
            highlight=False,
            markup=False,
            legacy_windows=False,
            emoji=False,
        )

    def text(self) -> str:
        """Return what was written."""
        return joined(self._file.getvalue().splitlines(), self.settings)

    def gap(self) -> None:
        """Write an empty line."""
        self._out.print()

    def paragraph(self, text: str, style: str = "") -> None:
        """Write a paragraph, wrapped; brackets are printed literally."""
        self.lines((styled(line, style, self.settings) for line in wrap(text, self.settings)), crop=False)

    def lines(self, lines: Iterable[str], *, crop: bool = True) -> None:
        """Write lines with their own colours; `crop` cuts off what does not fit."""
        from rich.text import Text

        for line in lines:
            self._out.print(Text.from_ansi(line), no_wrap=True, overflow="crop" if crop else "ignore", crop=crop)

    @property
    def height(self) -> int:
        """Lines written so far."""
        return self._file.getvalue().count("\n")

    def left(self, always: Sequence[str], more: Sequence[str]) -> int:
        """Return how many lines of a screen are left above the remarks that `short_remarks` writes at least."""
        least = sum(len(wrap(f"  {one}", self.settings)) for one in always) + bool(more)
        return most_lines(self.settings) - self.height - least - bool(least)

    def short_remarks(self, always: Sequence[str], more: Sequence[str]) -> None:
        """Write remarks below an empty line: of `more` those that fit on the screen, then how many are left out."""
        room = self.left(always, more)
        shown = list(more)
        while shown and sum(len(wrap(f"  {one}", self.settings)) for one in shown) > room + (len(shown) == len(more)):
            shown.pop()
        left = len(more) - len(shown)
        said = words.plural(left, "more remark" if shown or always else "remark")
        self.remarks([*shown, *[f"{said}: --full"] * bool(left), *always])

    def remarks(self, remarks: Iterable[str], *, gap: bool = True) -> None:
        """Write indented paragraphs below an empty line; nothing where there are none."""
        for number, remark in enumerate(remarks):
            if gap and not number:
                self.gap()
            self.paragraph(f"  {remark}")

    def problems(self, problems: Sequence[str], most: int | None = None) -> None:
        """Write what could not be read; of more than `most`, the first and how many others there are."""
        shown = problems if most is None or len(problems) <= most else problems[: most - 1]
        for problem in shown:
            self.paragraph(f"  not read: {problem}", "red")
        if left := len(problems) - len(shown):
            self.paragraph(f"  not read: {left:,} more, which --full lists", "red")

    def picture(self, lines: Sequence[str], caption: str = "") -> None:
        """Write a picture and its caption below an empty line; nothing where there is no picture."""
        if lines:
            self.gap()
            self.paragraph(caption and f" {caption}")
            self.lines(lines)

    def _fitting(self, columns: Sequence[Column]) -> list[Column]:
        """Return the columns without those that can be spared, as far as the screen is too narrow for them."""
        kept = list(columns)

        def wide(column: Column) -> int:
            lines = [*column.heading.split("\n"), *column.cells]
            return min(max(len(carried(line, self.settings)) for line in lines), column.most or self.settings.width)

        while sum(map(wide, kept)) + 2 * (len(kept) - 1) > self.settings.width:
            least = max(kept, key=lambda column: column.spare)
            if not least.spare:
                break
            kept.remove(least)
        return kept

    def tables(self, columns: Sequence[Column], styles: Sequence[str] = (), *, gap: bool = True) -> None:
        """Write a table; one that is too wide as several below each other, the first column before each."""
        label, *others = columns
        parts: list[list[Column]] = [[]]
        for column in others:
            wide = sum(map(_width, [label, *parts[-1], column])) + 2 * (len(parts[-1]) + 1)
            if parts[-1] and wide > self.settings.width:
                parts.append([])
            parts[-1].append(column)
        for number, part in enumerate(parts):
            self.table([label, *part], styles, gap=gap or number > 0)

    def table(self, columns: Sequence[Column], styles: Sequence[str] = (), *, gap: bool = True) -> None:
        """Write a table without rules below an empty line; `styles` has one for each row, or none."""
        from rich.table import Table
        from rich.text import Text

        columns = self._fitting(columns)
        table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=False)
        rows = list(zip(*([carried(cell, self.settings) for cell in column.cells] for column in columns), strict=True))
        for position, column in enumerate(columns):
            wide = max(map(len, [column.heading, *(row[position] for row in rows)]))
            # rich crops without a mark what must not wrap, unless an ellipsis marks it.
            marked = column.overflow == "ellipsis" and self.settings.unicode
            table.add_column(
                carried(column.heading, self.settings),
                justify=column.justify,
                no_wrap=marked and not column.wraps,
                overflow="ellipsis" if marked else "fold",
                min_width=column.most and min(wide, column.most),
                max_width=column.most,
            )
        for position, row in enumerate(rows):
            table.add_row(*map(Text, row), style=styles[position] if styles else "")
        if gap:
            self.gap()
        self._out.print(table)
