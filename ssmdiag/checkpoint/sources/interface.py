"""What every source of bytes offers."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Protocol


class Source(Protocol):
    """The bytes of one file, wherever they are; they must stay what they were when the source was made."""

    name: str
    """The file's name, for messages."""
    size: int
    """In bytes."""
    path: Path
    """The file, where it is on this machine; elsewhere a name for it, which nothing may be looked up by."""

    def read(self, start: int, length: int) -> bytearray:
        """Return bytes, in memory that is the caller's own.

        Raises EOFError where there are fewer, and then takes no memory, or where they have changed; OSError where
        they cannot be had.
        """

    def open(self) -> IO[bytes]:
        """Return all of it as a file that can be searched, for what reads from files. Raises as `read` does."""
