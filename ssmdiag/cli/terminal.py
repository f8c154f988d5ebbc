"""What the terminal can show: width, colour, characters. Data goes to stdout, remarks to stderr."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from ssmdiag.errors import SsmdiagError


class Colour(StrEnum):
    """Values of --color."""

    auto = "auto"
    always = "always"
    never = "never"


def width() -> int:
    """Return COLUMNS, else the terminal's width, else 80; never under 40."""
    return max(shutil.get_terminal_size((80, 24)).columns if _sized() else 80, 40)


def colour(choice: Colour, stream: TextIO | None = None) -> bool:
    """Return whether to colour, by the option, NO_COLOR, FORCE_COLOR, TERM and the stream."""
    if choice is not Colour.auto:
        return choice is Colour.always
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE")) or (stream or sys.stdout).isatty()


def unicode() -> bool:
    """Return whether stdout's encoding carries block and Greek characters."""
    try:
        "▁█⢕τ×".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def emit(text: str, output: Path | None) -> None:
    """Write to stdout, or to a file by way of a temporary name. Raises SsmdiagError where it cannot."""
    if output is None:
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            from ssmdiag.reports.words import ASCII

            encoding = sys.stdout.encoding or "ascii"
            sys.stdout.write(text.translate(ASCII).encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()
        return
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SsmdiagError(f"--output {output}: cannot be written ({error.strerror or error}).") from error


def show_tracebacks() -> None:
    """Show on stderr, where SSMDIAG_DEBUG is set, what lies behind the errors of layers; in every process."""
    if os.environ.get("SSMDIAG_DEBUG"):
        import logging

        logger = logging.getLogger("ssmdiag")
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.DEBUG)


def _sized() -> bool:
    return sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
