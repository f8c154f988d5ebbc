"""Messages on a terminal: wrapped at its width, with everything that is to be copied in one piece.

A log is searched line by line, and whoever shows it wraps it: where stderr is no terminal, each line of a message stays
one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain

from ssmdiag.cli import terminal

_PIECE = re.compile(r"(?<!\S)[(\[]?(?:`[^`]*`|'[^']*'|\"[^\"]*\")\S*|(?<=[?:] )ssmdiag .*|\S+")
"""A word, or what is to be copied: what stands in quotes, a command that ends the line."""
_TITLES = ("error:", "note:", "warning:")
_COMMAND = re.compile(r"\s*(?:next: )?ssmdiag\s")


def wrapped(message: str) -> str:
    """Return the lines of a message as the terminal shows them best; a text to copy, below an empty line, as it is."""
    width = width_of_messages()
    if width is None:
        return message
    said, gap, sample = message.partition("\n\n")
    return "\n".join(chain.from_iterable(fold(line, width) for line in said.split("\n"))) + gap + sample


def remark_problems(what: str, sentences: Iterable[str]) -> None:
    """Write a paragraph to stderr for each thing that is missing from a report."""
    for sentence in sentences:
        terminal.remark(wrapped(f"{what}: {sentence}"))


def width_of_messages() -> int | None:
    """Return COLUMNS, else the width of the terminal that stderr is; None where it is none. Never under 40."""
    stream = terminal.drawing()
    return terminal.width(stream) if stream.isatty() else None


def fold(line: str, width: int) -> Iterator[str]:
    """Yield a line in lines that fit, broken between words alone; of a command, the line itself.

    A name is longer than the line rather than broken: it must be possible to copy it whole. No line is "error:" alone.

    >>> print(*fold("  closest: lru – nu_log at the top; net.layers.0.seq.theta_log missing", 34), sep=chr(10))
      closest: lru – nu_log at the
        top;
        net.layers.0.seq.theta_log
        missing
    >>> list(fold("  next: ssmdiag inspect --length 64 model.safetensors", 40))
    ['  next: ssmdiag inspect --length 64 model.safetensors']
    """
    if len(line) < width or _COMMAND.match(line):
        yield line
        return
    lead = line[: len(line) - len(line.lstrip())]
    after = f"{lead}  " if lead else ""
    now = lead
    for piece in _PIECE.findall(line):
        gap = " " * bool(now.strip())
        if gap and now not in _TITLES and len(now) + len(gap) + len(piece) >= width:
            yield now
            now, gap = after, ""
        now += gap + piece
    yield now
