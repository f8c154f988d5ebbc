"""A source whose bytes are in memory and have no path: what reads from it reads no file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO


class InMemory:
    """Bytes under a name."""

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        self.path: Path | None = None
        self.size = len(content)
        self.pieces: list[tuple[int, int]] = []
        """Start and length of each piece that was asked for."""
        self._content = content

    def read(self, start: int, length: int) -> bytearray:
        if not 0 <= start <= start + length <= self.size:
            raise EOFError(f"the file ends before byte {start + length:,}")
        self.pieces.append((start, length))
        return bytearray(self._content[start : start + length])

    def open(self) -> IO[bytes]:
        return io.BytesIO(self._content)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: all of it is here."""
