"""A file within another: its bytes, one after the other, in the file that holds it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ssmdiag.checkpoint.sources.interface import Source


class Slice:
    """Consecutive bytes of a source, as a source of their own."""

    path: Path | None = None
    """None: nothing lies beside it."""

    def __init__(self, whole: Source, start: int, size: int, name: str) -> None:
        self.name, self.size = name, size
        self._whole, self._start = whole, start

    def read(self, start: int, length: int) -> bytearray:
        if not 0 <= start <= start + length <= self.size:
            raise EOFError(f"{self.name} ends before byte {start + length:,}")
        return self._whole.read(self._start + start, length)

    def open(self) -> IO[bytes]:
        return io.BufferedReader(_SliceFile(self._whole.open(), self._start, self.size))  # type: ignore[type-var]

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._whole.prefetch((self._start + start, length) for start, length in ranges)


class _SliceFile(io.RawIOBase):
    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file, self._start, self._size = file, start, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the file")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        content = self._file.read(length)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
