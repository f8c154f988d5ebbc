"""A run of bytes of another source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO

from ssmdiag.checkpoint.sources.interface import Source


class Part:
    """So many bytes of a source, from a start; it is called like the source. Raises EOFError where they are not all
    there.
    """

    path: Path | None = None

    def __init__(self, whole: Source, start: int, length: int) -> None:
        if not 0 <= start <= start + length <= whole.size:
            raise EOFError(f"the file ends before byte {start + length:,}")
        self.name = whole.name
        self.size = length
        self._whole = whole
        self._start = start
        self._content: bytearray | None = None

    def read(self, start: int, length: int) -> bytearray:
        if not 0 <= start <= start + length <= self.size:
            raise EOFError(f"the part ends before byte {start + length:,}")
        return self._whole.read(self._start + start, length)

    def open(self) -> IO[bytes]:
        """Return all of it; it is read once, as code that reads files may open them repeatedly."""
        if self._content is None:
            self._content = self._whole.read(self._start, self.size)
        return io.BytesIO(self._content)
