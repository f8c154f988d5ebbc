"""A file on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from ssmdiag.checkpoint.budget import open_regular


class LocalFile:
    """A local file, read in pieces by offset, that must not change once it is opened.

    Not memory-mapped: a file that shrinks while it is mapped kills the process. Raises OSError unless it is a regular
    file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        with open_regular(path) as file:
            self._state = _state_of(file)
        self.size = self._state[0]

    def read(self, start: int, length: int) -> bytearray:
        """Return bytes. Raises EOFError where the file ends earlier (before allocating memory) or was changed."""
        if not 0 <= start <= start + length <= self.size:
            raise EOFError(f"the file ends before byte {start + length:,}")
        with self.open() as file:
            content = bytearray(length)
            file.seek(start)
            if file.readinto(content) != length:  # type: ignore[attr-defined]
                raise EOFError("the file became shorter while it was read")
        return content

    def open(self) -> IO[bytes]:
        """Return the file, open for reading. Raises EOFError where it was changed."""
        file = open_regular(self.path)
        if _state_of(file) != self._state:
            file.close()
            raise EOFError("the file was changed while it was read")
        return file


def _state_of(file: IO[bytes]) -> tuple[int, int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns, state.st_ino
