"""A file on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ssmdiag.checkpoint.budget import open_regular

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location


class LocalFile:
    """A local file, read in pieces by offset, that must not change once it is opened.

    Not memory-mapped: a file that shrinks while it is mapped kills the process. Raises OSError unless it is a regular
    file. `copy_of`: the file it is a copy of, where others are looked for beside that one.
    """

    def __init__(self, path: Path, copy_of: Location | None = None) -> None:
        self._file = path
        self.path: Location = copy_of or path
        self.name = self.path.name
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
        file = open_regular(self._file)
        if _state_of(file) != self._state:
            file.close()
            raise EOFError("the file was changed while it was read")
        return file

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Do nothing: the system reads ahead."""


def _state_of(file: IO[bytes]) -> tuple[int, int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns, state.st_ino
