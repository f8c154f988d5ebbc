"""One page of HTML that needs nothing else: no script, no network, light and dark, on a phone and on paper."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ssmdiag.reports import words
from ssmdiag.reports.answer import Answer, Status
from ssmdiag.reports.drawing.picture import Picture, escape
from ssmdiag.reports.page.style import STYLE

State = Literal["ok", "note", "warning", "error", "plain"]
SAID = {"ok": "OK", "note": "Note", "warning": "Warning", "error": "Problem", "plain": ""}
"""The state in a word: no colour alone says it."""
STATES: Mapping[Status, State] = {
    "ok": "ok", "warning": "warning", "problem": "error", "undetermined": "note",
    "same": "ok", "same at rest": "note", "differs": "error",
}  # fmt: skip
"""How an answer is coloured; its word is its own status."""
NAME, SENTENCE = 30, 48
"""Letters from which on the name of a row, and what stands in a cell, may have several lines."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a browser lets the page do: nothing but look as it does."""


class Cell(NamedTuple):
    """A number as it is read, and as it is."""

    said: str
    value: float | str | None


@dataclass
class Page:
    """A page that is written from top to bottom."""

    title: str
    verdict: str | Answer
    state: State = "plain"
    pictures: list[Picture] = field(default_factory=list)
    """Those that it shows, the main one first."""
    parts: list[str] = field(default_factory=list)
    place: str = ""
    """Where it is, if it is part of another page."""

    def warn(self, guess: str) -> None:
        """Say, below the verdict, what the whole page rests on."""
        self.parts.insert(0, f'<p class="verdict warning"><b>{escape(words.capitalised(guess))}.</b></p>\n')

    def heading(self, text: str, level: int = 2) -> None:
        self.parts.append(f"<h{level}>{escape(text)}</h{level}>\n")

    def answer(self, text: str | Answer, state: State = "plain") -> None:
        """Add the verdict of one of several."""
        self.parts.append(_verdict(text, state))

    def finding(self, name: str, text: str, advice: str, state: State) -> None:
        """Add what was found: its name, what was seen and what to do, one below the other as on a phone."""
        self.parts.append(
            f'<div class="finding {state}"><b>{escape(name)}</b><br>{_prose(text)}<br>{_prose(advice)}</div>\n'
        )

    def paragraph(self, text: str) -> None:
        if text:
            self.parts.append(f"<p>{_prose(text)}</p>\n")

    def remarks(self, lines: Iterable[str], heading: str = "") -> None:
        """Add a list of sentences; nothing where there is none."""
        items = "".join(f"<li>{_prose(line)}</li>" for line in lines if line)
        if items:
            if heading:
                self.heading(heading)
            self.parts.append(f"<ul>{items}</ul>\n")

    def table(
        self, caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]], states: Sequence[str] = ()
    ) -> None:
        """Add a table: of each row, the first cell is its name. Columns in which nothing is known are left out."""
        self.parts.append(_table(caption, heads, list(rows), states))

    def gallery(self, pictures: Iterable[Picture | None]) -> None:
        """Add pictures, each with the table of its numbers."""
        figures = []
        for picture in pictures:
            if picture is not None:
                figures.append(_figure(picture, f"{self.place}.{len(self.pictures)}"))
                self.pictures.append(picture)
        if figures:
            self.parts.append(f'<div class="pictures">{"".join(figures)}</div>\n')

    def fold(self, summary: str, inside: Page) -> None:
        """Add what is shown only when it is opened."""
        self.parts.append(f"<details><summary>{escape(summary)}</summary>\n{''.join(inside.parts)}</details>\n")

    def settings(self, command: str, settings: Mapping[str, Any]) -> None:
        """Add what was run, and with what."""
        self.heading("Settings")
        if command:
            self.parts.append(f'<p>Made by</p><pre class="scroll" tabindex="0">{escape(command)}</pre>\n')
        rows = [[name, value] for name, value in settings.items() if value is not None]
        self.parts.append(_table("What was read, and with what", ["setting", "value"], rows))

    def fragment(self) -> str:
        """Return the page as one element that brings its style, for notebooks and for `document`."""
        head = f"<h1>{escape(self.title)}</h1>\n{_verdict(self.verdict, self.state)}"
        return f'<div class="ssmdiag"><style>{STYLE}</style>\n{head}{"".join(self.parts)}</div>\n'

    def document(self) -> str:
        """Return the page as a file."""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">\n'
            f'<link rel="icon" href="data:,"><title>{escape(self.title)}</title></head>\n'
            f'<body class="ssmdiag-page"><main>{self.fragment()}</main></body></html>\n'
        )


def _prose(text: str) -> str:
    """Return a sentence in which options and 1−|λ̄| are never broken over two lines."""
    return re.sub(r"--[a-z][a-z-]*|1−\|λ̄\|", r'<span class="whole">\g<0></span>', escape(text))


def in_references(html: str) -> str:
    """Return a page in ASCII, other characters as references, for an output that cannot carry them.

    >>> in_references("<b>τ</b>")
    '<b>&#964;</b>'
    """
    return html.encode("ascii", "xmlcharrefreplace").decode()


def steps(value: float | str | None) -> Cell:
    """Return a number of steps as it is read."""
    return Cell(words.steps(_number(value)), value)


def margin(value: float | str | None) -> Cell:
    """Return 1 − |λ̄| as it is read."""
    return Cell(words.margin(_number(value)), value)


def percent(value: float | str | None, digits: int = 3) -> Cell:
    """Return a share in percent."""
    share = _number(value)
    return Cell("–" if share is None else f"{100 * share:.{digits}g} %", value)


def digits(value: float | str | None, count: int = 3) -> Cell:
    """Return a number with so many digits, written out below a thousand million.

    >>> digits(13_541.2, 4).said, digits(0.01234).said, digits(2.5e12).said
    ('13,540', '0.0123', '2.5e+12')
    """
    number = _number(value)
    if number is not None and 10**count <= abs(number) < 1e9:
        return Cell(f"{float(f'{number:.{count}g}'):,.0f}", value)
    return Cell("–" if number is None else f"{number:,.{count}g}", value)


def at(record: Any, *keys: str) -> Any:
    """Return an entry of nested data, None where a part of the way is not there.

    >>> at({"a": {"b": 1}}, "a", "b"), at({"a": None}, "a", "b")
    (1, None)
    """
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _number(value: float | str | None) -> float | None:
    return float(value) if value is not None else None


def _figure(picture: Picture, place: str) -> str:
    numbers = picture.numbers()
    table = _table(picture.title, numbers.heads, [list(map(_shortened, row)) for row in numbers.rows])
    return (
        f"<figure><figcaption><b>{escape(picture.title)}.</b> {escape(picture.about)}</figcaption>\n"
        f"{picture.svg(place)}\n<details><summary>Numbers of this picture</summary>\n{table}</details></figure>\n"
    )


def _shortened(value: Any) -> Any:
    return digits(value, 5) if isinstance(value, float) else value


def _verdict(text: str | Answer, state: State) -> str:
    word = SAID[state]
    if isinstance(text, Answer):
        word = SAID["ok"] if text.status == "ok" else words.capitalised(text.status)
        state = STATES[text.status]
        text = words.capitalised(text.text)
    word = f"<b>{word}.</b> " if word else ""
    return f'<p class="verdict {state}">{word}{_prose(text)}</p>\n'


def _table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], states: Sequence[str] = ()) -> str:
    used = [k for k in range(len(heads)) if not k or any(_is_known(row[k]) for row in rows)]
    left = {k for k in used if any(isinstance(row[k], str) and row[k] for row in rows)}
    kinds = {k: ' class="word"' if k in left else "" for k in used}
    named = [escape(head).replace(" %", "&#160;%") for head in heads]
    head = "".join(f'<th scope="col"{kinds[k]}>{named[k]}</th>' for k in used)
    lines = []
    for number, row in enumerate(rows):
        state = f' class="{states[number]}"' if number < len(states) and states[number] else ""
        cells = "".join(_cell(row[k], k in left) for k in used[1:])
        first = row[used[0]]
        kind = ' class="words"' if isinstance(first, str) and len(first) > NAME else ""
        lines.append(f'<tr{state}><th scope="row"{kind}>{_content(first)}</th>{cells}</tr>\n')
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0"><table>'
        f"<caption><span>{_prose(caption)}</span></caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{''.join(lines)}</tbody>"
        "</table></div>\n"
    )


def _is_known(value: Any) -> bool:
    return (value.value if isinstance(value, Cell) else value) not in (None, "")


def _cell(value: Any, left: bool) -> str:
    kind = "words" if isinstance(value, str) and len(value) > SENTENCE else "word" if left else ""
    return f'<td class="{kind}">{_content(value)}</td>' if kind else f"<td>{_content(value)}</td>"


def _content(value: Any) -> str:
    """Return what stands in a cell: a number that is shortened keeps its whole value beside what is read."""
    if isinstance(value, Cell):
        if value.value is None:
            return "–"
        whole = repr(value.value) if isinstance(value.value, float) else str(value.value)
        return (
            escape(value.said) if value.said == whole else f'<data value="{escape(whole)}">{escape(value.said)}</data>'
        )
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f'<data value="{value}">{value:,}</data>' if value >= 1000 else str(value)
    if isinstance(value, float):
        return _content(Cell("∞" if math.isinf(value) else f"{value:.6g}", value))
    return f"<bdi>{escape(value)}</bdi>"
