"""What every picture has: names for those who do not see it, its numbers, and its own file."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_html
from typing import Any

from ssmdiag.printable import printable
from ssmdiag.reports.drawing.colours import STYLE, variables

WIDE = 480
"""Units across: on a phone three quarters of a pixel each, so that letters of 13 stay readable."""


@dataclass(frozen=True)
class Numbers:
    """The numbers that a picture shows, as a table."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Picture:
    """The base of all pictures; `body` and `numbers` make one."""

    title: str
    """What it is of, without a full stop."""
    about: str
    """A sentence or two: what is drawn, and how to read it."""

    @property
    def height(self) -> int:
        """Units from top to bottom."""
        raise NotImplementedError

    def body(self) -> str:
        """Return its elements."""
        raise NotImplementedError

    def numbers(self) -> Numbers:
        """Return every number that it shows."""
        raise NotImplementedError

    def svg(self, place: str = "", *, alone: bool = False) -> str:
        """Return the picture as one element; `alone`: as a file of its own, which brings its colours and its ground.

        `place` tells it from the same picture elsewhere in a page.
        """
        body = self.body()
        # Pages in one notebook share their ids: a count would name the pictures of two pages alike.
        mark = "s" + hashlib.sha256(f"{place} {self.title}{self.about}{body}".encode()).hexdigest()[:10]
        size = f'viewBox="0 0 {WIDE} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" role="img" {size}'
        names = f'<title id="{mark}t">{escape(self.title)}</title><desc id="{mark}d">{escape(self.about)}</desc>'
        if not alone:
            return f'{head} aria-labelledby="{mark}t" aria-describedby="{mark}d">{names}{body}</svg>'
        style = variables("svg.picture") + STYLE
        ground = f'<style>{style}</style><rect class="ground" width="{WIDE}" height="{self.height}"/>'
        sizes = f'width="{2 * WIDE}" height="{2 * self.height}"'
        return f'{head} {sizes} aria-labelledby="{mark}t" aria-describedby="{mark}d">{names}{ground}{body}</svg>\n'


def escape(text: Any) -> str:
    """Return text, which may come from a file, as it stands between tags or in an attribute.

    >>> escape('<script>"\u202e')
    '&lt;script&gt;&quot;\\\\u202e'
    """
    return escape_html(printable(str(text)), quote=True)


def text(x: float, y: float, said: str, kind: str = "", *, anchor: str = "start") -> str:
    """Return words at a place."""
    classes = f' class="{kind}"' if kind else ""
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_digits(x)}" y="{_digits(y)}"{classes}{at}>{escape(said)}</text>'


def centred(x: float, y: float, said: str, kind: str = "") -> str:
    """Return words around a place, moved where they would leave the picture."""
    half = width_of(said) / 2
    return text(min(max(x, half + 2), WIDE - half - 2), y, said, kind, anchor="middle")


def width_of(said: str) -> float:
    """Return how many units words take in the widest of the usual fonts.

    >>> width_of("10k") < width_of("MWM") < width_of("表示層")
    True
    """
    return sum(map(_width, printable(said)))


def shortened(said: str, room: float, *, from_left: bool = False) -> str:
    """Return words that fit into so many units: a mark stands for what is cut.

    >>> shortened("backbone.layers.0.mixer", 100.0, from_left=True)
    '…ers.0.mixer'
    """
    said = printable(said)
    if width_of(said) <= room:
        return said
    while said and width_of(f"…{said}") > room:
        said = said[1:] if from_left else said[:-1]
    return f"…{said}" if from_left else f"{said}…"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a straight line."""
    return f'<path class="{kind}" d="M{_digits(x1)} {_digits(y1)}L{_digits(x2)} {_digits(y2)}"/>'


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return a line through places, as the `d` of a path."""
    return "M" + "L".join(f"{_digits(x)} {_digits(y)}" for x, y in points)


def _width(letter: str) -> float:
    if unicodedata.combining(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 14.0
    if letter in "mwMW@%…—":
        return 13.0
    if letter in "fijlrtI .,:;'|!()[]-/":
        return 5.3
    return 9.8 if letter.isupper() else 8.3


def _digits(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
