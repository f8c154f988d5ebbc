"""A file read from front to back; every length in it is compared with the file's end before memory is allocated."""

from __future__ import annotations

import struct
from typing import IO, Any


class TornError(Exception):
    """The file ends early, contradicts itself or exceeds a limit."""


class SequentialReader:
    """Reads bytes and numbers one after another. Raises TornError."""

    where = "a value"
    """What a file that ends early ends in."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self.end = size
        self.at = 0

    def read(self, length: int) -> bytes:
        if length > self.end - self.at:
            raise self._ends()
        self.at += length
        content = self._file.read(length)
        if len(content) < length:
            raise TornError("it became shorter while it was read")
        return content

    def skip(self, length: int) -> None:
        if length > self.end - self.at:
            raise self._ends()
        self.at += length
        self._file.seek(self.at)

    def number(self, format: str) -> Any:
        """Return a number in a format of `struct`."""
        return struct.unpack(format, self.read(struct.calcsize(format)))[0]

    def _ends(self) -> TornError:
        return TornError(f"it ends after {self.end:,} bytes, within {self.where}")
