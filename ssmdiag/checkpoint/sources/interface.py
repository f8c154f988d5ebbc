"""The interface of a source of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location


class Source(Protocol):
    """The bytes of one file, wherever it is; they must not change once the source is made."""

    name: str
    """The file's name, for messages."""
    size: int
    """In bytes."""

    @property
    def path(self) -> Location | None:
        """Where the file is, so that others can be looked for beside it; None for a part of another file."""

    def read(self, start: int, length: int) -> bytearray:
        """Return bytes, in memory that the caller owns.

        Raises EOFError where there are fewer bytes (before allocating memory) or where they have changed, OSError
        where they cannot be read.
        """

    def open(self) -> IO[bytes]:
        """Return the whole content as a seekable file, for code that reads files. Raises the errors of `read`."""

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Say which bytes will be read, each range as start and length: what is far away begins to fetch them."""
