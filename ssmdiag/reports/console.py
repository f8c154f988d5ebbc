"""A console that writes into memory, at the width, colour and character set that the user's terminal has."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ssmdiag.reports import words

if TYPE_CHECKING:
    from rich.console import Console

    from ssmdiag.reports.interface import Settings


def open_console(settings: Settings) -> Console:
    """Return a console that writes into memory at the width and colour asked for."""
    from rich.console import Console  # takes a while to import, and `check` without colour does not need it

    return Console(
        file=io.StringIO(),
        width=settings.width,
        height=25,  # else it reads LINES, and fails where that is not a number
        force_terminal=settings.colour,
        color_system="standard" if settings.colour else None,
        highlight=False,
        markup=False,
        legacy_windows=False,
        emoji=False,
    )


def close_console(out: Console, settings: Settings) -> str:
    """Return what was written, without trailing blanks, in ASCII where that is asked for."""
    assert isinstance(out.file, io.StringIO)
    return carried("\n".join(line.rstrip() for line in out.file.getvalue().splitlines()) + "\n", settings)


def carried(text: str, settings: Settings) -> str:
    """Return the text in characters that the output carries."""
    return text if settings.unicode else text.translate(words.ASCII).encode("ascii", "replace").decode()
