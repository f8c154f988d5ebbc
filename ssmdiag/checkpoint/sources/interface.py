"""The interface of a source of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol


class Source(Protocol):
    """The bytes of one file, wherever it is; they must not change once the source is made."""

    name: str
    """The file's name, for messages."""
    size: int
    """In bytes."""

    @property
    def path(self) -> Path | None:
        """The file, where it is on this machine, so that others can be looked for beside it; else None."""

    def read(self, start: int, length: int) -> bytearray:
        """Return bytes, in memory that the caller owns.

        Raises EOFError where there are fewer bytes (before allocating memory) or where they have changed, OSError
        where they cannot be read.
        """

    def open(self) -> IO[bytes]:
        """Return the whole content as a seekable file, for code that reads files. Raises the errors of `read`."""
