"""What the terminal can show: width, colour, characters. Data goes to stdout, remarks to stderr."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from ssmdiag.printable import harmless, without_secrets

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.output.writer import Stream, Target
    from ssmdiag.reports import Settings


Colour = Literal["auto", "always", "never"]
"""Values of --color."""
WIDEST = 10_000
"""Columns at most; lines are built in memory."""


def width(stream: TextIO | None = None) -> int:
    """Return COLUMNS, else the width of the terminal that a stream is, stdout by default, else 80; never under 40."""
    stream = stream or sys.stdout
    columns = os.environ.get("COLUMNS", "")
    if usable_size(columns):
        wide = int(columns)
    else:
        wide = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 80
    return min(max(wide or 80, 40), WIDEST)


def usable_size(value: str) -> bool:
    """Whether COLUMNS or LINES is a number of columns or lines. A library that reads them would fail on `²`.

    >>> [usable_size(value) for value in ("132", "0", "-5", "²", "1e3", "999999999")]
    [True, False, False, False, False, False]
    """
    return value.isascii() and value.isdecimal() and len(value) <= len(str(WIDEST)) and 0 < int(value) <= WIDEST


def colour(choice: Colour, stream: TextIO | None = None) -> bool:
    """Return whether to colour, by the option, NO_COLOR, FORCE_COLOR, CLICOLOR, TERM and the stream."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    if os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE"):
        return True
    return os.environ.get("CLICOLOR") != "0" and (stream or sys.stdout).isatty()


def unicode() -> bool:
    """Return whether stdout's encoding carries block and Greek characters."""
    try:
        "▁█⢕τ×".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def settings(color: Colour, output: Path | None = None, *, text: bool = True, **looks: Any) -> Settings:
    """Return how a report is to look: colours only in text on a screen, and in a file every character."""
    from ssmdiag.reports import Settings

    coloured = text and output is None and colour(color)
    command = without_secrets(shlex.join(["ssmdiag", *sys.argv[1:]]))
    return Settings(width=width(), colour=coloured, unicode=output is not None or unicode(), command=command, **looks)


def emit(text: str, output: Target | None, *, colours: bool = False, commands: bool = False) -> None:
    """Write to stdout or to a file, through the one escape and the one writer.

    `colours`: the text has colours, which a file drops. `commands`: it is a list of workflow commands, whose lines may
    begin with `::`. Raises OutputError.
    """
    if output is None:
        _say(sys.stdout, harmless(text, colours=colours, commands=commands))
    else:
        output.write(text, commands=commands)


def remark(text: str) -> None:
    """Write a line, or lines, to stderr, through the one escape."""
    _say(sys.stderr, harmless(text).rstrip("\n") + "\n")


class Lines:
    """An output that grows: each write is visible at once, and stays if something later fails."""

    def __init__(self, output: Target | None, *, colours: bool = False, commands: bool = False) -> None:
        self._output = output
        self._gates = {"colours": colours, "commands": commands}
        self._stream: Stream | None = None

    def write(self, text: str) -> None:
        """Write whole lines; they are out when this returns. Raises OutputError."""
        if self._output is None:
            emit(text, None, **self._gates)
            return
        if self._stream is None:
            from ssmdiag.output.writer import Stream

            self._stream = Stream(self._output)
        self._stream.write(text)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._stream is not None:
            self._stream.close()


def claim_outputs(
    output: Path | None,
    also: Sequence[tuple[str, Path]] = (),
    *,
    reads: Iterable[Location | None],
    format: str = "text",
    baseline: Path | None = None,
) -> tuple[Target | None, list[Target]]:
    """Return where a report and its copies go, each checked before the work, not after it.

    `reads` are the files and folders that the command reads, `baseline` the one that it keeps up to date. Raises
    OutputError for a file that cannot be written, is read, or is given twice.
    """
    from ssmdiag.output.writer import Target, claim, keep_streams_off

    read = tuple(path for path in (*reads, baseline) if isinstance(path, Path))
    keep_streams_off(read)
    main = None if output is None else Target(output, "--output", read, lines=format == "jsonl")
    others = [Target(path, f"--also {form}", read, lines=form == "jsonl") for form, path in also]
    claim([*([main] if main else []), *others], rewritten=baseline)
    return main, others


def guard_errors() -> None:
    """Let nothing that acts on a terminal or a CI runner reach stderr, whoever writes: usage errors, tracebacks."""
    if sys.stderr is not None and not isinstance(sys.stderr, _Guard):
        sys.stderr = _Guard(sys.stderr)


def drawing() -> TextIO:
    """Return stderr for bars that move the cursor; names in them must be printable."""
    return sys.stderr.stream if isinstance(sys.stderr, _Guard) else sys.stderr


def let_others_draw() -> None:
    """Leave stderr to the user's own code, which may draw progress bars."""
    sys.stderr = drawing()


class _Guard:
    """A stream that prints control characters visibly. It has no `buffer`, through which text could bypass it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        _put(self.stream, harmless(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.stream, name)


def _say(stream: TextIO, text: str) -> None:
    _put(stream, text)
    stream.flush()


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        from ssmdiag.reports.words import ASCII

        encoding = stream.encoding or "ascii"
        stream.write(text.translate(ASCII).encode(encoding, "replace").decode(encoding))


def show_tracebacks() -> None:
    """Where SSMDIAG_DEBUG is set, print the tracebacks behind layer errors to stderr; in every process."""
    if os.environ.get("SSMDIAG_DEBUG"):
        import logging

        logger = logging.getLogger("ssmdiag")
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.DEBUG)


def show_progress(arguments: Sequence[str]) -> None:
    """Write what the library logs of long readings to stderr, unless the arguments ask for quiet."""
    import logging

    class Remarks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            remark(record.getMessage())

    logger = logging.getLogger("ssmdiag.progress")
    logger.propagate = False
    logger.handlers = [] if {"-q", "--quiet"} & set(arguments) else [Remarks()]
    logger.setLevel(logging.INFO)
