"""The folder of a run while it is written: which of its checkpoints can be read now.

Some writers rename a finished file into place; others let it grow under its final name, of which the size proves
nothing. A checkpoint is therefore read once its files have kept size and time of change over two looks, or since
before the time between two; what then does not open is tried again. Reading it says whether it is whole.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssmdiag.checkpoint.directories import runs_in
from ssmdiag.compare.run_order import numbered_in
from ssmdiag.errors import CheckpointError

UNFINISHED = re.compile(r"^\.|^tmp|\.tmp\b|-tmp(?:-|$)|\.(?:part|incomplete)\b")
"""Names under which writers keep what they rename when it is whole."""
MOST_FILES = 10_000
LONGEST_WAIT = 64
"""Most looks until a checkpoint that could not be read, and has not changed, is tried again."""
_NUMBERS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class _State:
    """What tells that a checkpoint is still being written."""

    files: tuple[tuple[str, int, int], ...]
    """Name, size and time of change in nanoseconds of each of its files."""

    @property
    def changed(self) -> float:
        """When it last changed, in seconds since the epoch."""
        return max(changed for _, _, changed in self.files) / 1e9


class RunFolder:
    """A folder that is looked into again and again. It need not exist yet."""

    def __init__(self, path: Path, between: float) -> None:
        self.path = path
        self.between = between
        """Seconds between two looks."""
        self.changed = False
        """Whether anything was other at the last look than at the one before."""
        self.pending = False
        """Whether something was there that has yet to show that it is whole."""
        self._now: dict[Path, _State] = {}
        self._read: dict[Path, _State] = {}
        self._waits: dict[Path, tuple[_State, int, int]] = {}
        """State in which it could not be read, looks until it is tried again, and how long that was."""

    @property
    def empty(self) -> bool:
        """Whether no checkpoint was there at the last look, whole or not."""
        return not self._now

    def look(self) -> list[Path]:
        """Return the checkpoints that seem to be whole and have not been read, by the numbers in their names.

        Raises CheckpointError where the folder holds the folders of runs.
        """
        inside = [
            entry for entry in numbered_in(self.path) if isinstance(entry, Path) and not UNFINISHED.search(entry.name)
        ]
        before, self._now = self._now, {entry: state for entry in inside if (state := _state(entry))}
        self.changed = before != self._now
        others = (self.changed or not inside) and not any(entry.is_file() for entry in inside)
        if others and (runs := runs_in(self.path)):
            raise CheckpointError(
                f"{self.path} holds runs in folders of their own: {', '.join(run.name for run in runs[:6])}",
                expected="the folder of one run",
                advice=f"ssmdiag watch {runs[0]}",
            )
        self._read = {path: state for path, state in self._read.items() if path in self._now}
        long_ago = time.time() - self.between
        new = [path for path in self._now if self._is_new(path)]
        settled = [p for p in new if self._now[p] == before.get(p) or self._now[p].changed <= long_ago]
        self.pending = len(settled) < len(new)
        return sorted(filter(self._is_due, settled), key=_natural)

    def done(self, path: Path) -> bool:
        """Take a checkpoint as read; return False where it changed meanwhile and has to be read again.

        One that was deleted since has been read.
        """
        if _state(path) not in (None, self._now[path]):
            return False
        self._read[path] = self._now[path]
        return True

    def later(self, path: Path) -> None:
        """Try a checkpoint again: when it changes, or after twice as many looks as the last time."""
        if path in self._now:
            waited = self._waits[path][2] if path in self._waits else 0
            longer = min(max(2 * waited, 1), LONGEST_WAIT)
            self._waits[path] = (self._now[path], longer, longer)

    def _is_new(self, path: Path) -> bool:
        """Whether it was not read as it is; what trainers add to a folder later is no other checkpoint."""
        return path not in self._read or (path.is_file() and self._read[path] != self._now[path])

    def _is_due(self, path: Path) -> bool:
        if path not in self._waits:
            return True
        state, left, whole = self._waits[path]
        if state != self._now[path]:
            del self._waits[path]
            return True
        self._waits[path] = (state, left - 1, whole)
        return left <= 1


def follow(folder: RunFolder, idle: float | None) -> Iterator[list[Path]]:
    """Yield what can be read at each look, which may be nothing; end after `idle` seconds in which nothing changed.

    What is there at first is read whatever `idle` is.
    """
    last = time.monotonic()
    while True:
        ready = folder.look()
        yield ready
        if ready or folder.changed:
            last = time.monotonic()
        left = folder.between if idle is None or folder.pending else min(folder.between, last + idle - time.monotonic())
        if left <= 0:
            return
        time.sleep(left)


def _state(path: Path) -> _State | None:
    """Return the state of a file, or of all files in a folder; None where it is gone or has none."""
    found: list[tuple[str, int, int]] = []
    try:
        if not path.is_dir():
            status = path.stat()
            return _State((("", status.st_size, status.st_mtime_ns),))
        for place, _, names in os.walk(path):
            for name in sorted(names)[: MOST_FILES - len(found)]:
                file = os.path.join(place, name)
                status = os.stat(file)
                found.append((file, status.st_size, status.st_mtime_ns))
    except OSError:
        return None
    return _State(tuple(sorted(found))) if found else None


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return what sorts `step-90` before `step-100`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(path.name)]
