"""Writes every output file of a command: checks it before the work, writes it beside its place, then renames it.

A file is written under a temporary name in the same folder and renamed, so that a full disk, a kill or a crash leaves
the old file unchanged. Links are followed and stay, the mode is kept, a new file obeys the umask. Devices, pipes and
descriptors (`/dev/stdout`, `>(program)`) are written directly. A writable file whose folder takes no new file, or that
is itself a mount point, is written in place. Lines of JSON are appended.

No temporary outlives its process: see `temporaries`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ssmdiag.checkpoint.surroundings import belongs_to_model, files_read_with
from ssmdiag.errors import OutputError
from ssmdiag.output.temporaries import place_of, replacing
from ssmdiag.printable import harmless

_IN_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
"""Errors from a folder that takes no new file, and from a file that is a mount point."""
_LINE_START = b'{"schema_version":'


@dataclass(frozen=True)
class Target:
    """An output file of a command. `claim` checks it before the work, `write` checks it again."""

    path: Path
    option: str = "--output"
    """The option that names it, for messages."""
    reads: tuple[Path, ...] = ()
    """Paths that the command reads: checkpoints (files and folders), settings, maps, baselines."""
    lines: bool = False
    """Whether it holds lines of JSON, to which new lines are appended."""

    def write(self, text: str, *, commands: bool = False) -> None:
        """Write the text, escaped. Raises OutputError where it cannot be written, or the command reads that file.

        `commands`: a list of workflow commands, whose lines may begin with `::`.
        """
        self.require_writable()
        if self.lines:
            with contextlib.closing(Stream(self)) as stream:
                stream.write(text)
            return
        with self.sentences("the old file is unchanged" if os.path.isfile(self.path) else ""):
            _write(self.path, harmless(text, commands=commands).encode())

    def require_writable(self) -> None:
        """Raise OutputError unless the file may and can be written."""
        with self.sentences():
            info = _status(self.path)
            if info is None:
                self._require_place()
                return
            if stat.S_ISDIR(info.st_mode):
                raise self.refusal("is a folder", expected="the name of a file")
            if stat.S_ISBLK(info.st_mode) or stat.S_ISSOCK(info.st_mode):
                raise self.refusal("is a disk or a socket", expected="a file, a pipe or a terminal")
            if file := _read_file_behind(info, self.reads):
                raise self.refusal(
                    f"is {file}, which the command reads" if file != self.path else "is a file that the command reads",
                    advice="choose another name.",
                )
            if not stat.S_ISREG(info.st_mode) or descriptor(self.path) is not None:
                return
            if not os.access(self.path, os.W_OK):
                raise self.refusal("is read-only", advice="choose another name, or chmod +w it.")
            if self.lines:
                self._require_lines()
            elif belongs_to_model(name := Path(os.path.realpath(self.path)).name):
                raise self.refusal(
                    f"exists already, and {name} is the name of a model file",
                    expected="another name for a report",
                    advice="remove it first, if it is no longer needed.",
                )

    def _require_place(self) -> None:
        try:
            folder = place_of(self.path).parent
        except FileNotFoundError as error:
            folder = Path(error.filename)
        if not folder.is_dir():
            raise self.refusal(
                f"cannot be written: there is no folder {folder}", advice=f"mkdir -p {shlex.quote(str(folder))}"
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise self.refusal(
                f"cannot be written: no file can be created in the folder {folder}", advice="choose another folder."
            )

    def _require_lines(self) -> None:
        with self.path.open("rb") as file:
            head = file.read(len(_LINE_START))
        if head != _LINE_START[: len(head)]:
            raise self.refusal(
                "exists already and does not begin with a line of ssmdiag's JSON, so nothing was added to it",
                expected="a new name, or a file of such lines",
            )

    def refusal(self, what: str, *, expected: str | None = None, advice: str | None = None) -> OutputError:
        """Return the error that says why this file is not written."""
        return OutputError(f"{self.option} {self.path}: {what}.", expected=expected, advice=advice)

    @contextmanager
    def sentences(self, after: str = "") -> Iterator[None]:
        """Raise OutputError for an OSError; a broken pipe behind standard output is the command's end, not an error."""
        try:
            yield
        except OSError as error:
            if isinstance(error, BrokenPipeError) and descriptor(self.path) == 1:
                raise
            after = "it had to be written in place and is now incomplete" if isinstance(error, _TornError) else after
            what = f"cannot be written ({error.strerror or error})"
            raise self.refusal(f"{what}; {after}" if after else what, advice=advice_for(error)) from error


class Stream:
    """Lines of JSON, each in its file as soon as it is written; a killed run loses none.

    Lines are appended to those of earlier runs. An incomplete last line, which a full disk leaves, is dropped.
    """

    def __init__(self, target: Target) -> None:
        target.require_writable()
        self._target = target
        self._count = 0
        with target.sentences():
            self._file = _open_special(target.path) or _open_lines(target.path)

    def write(self, text: str) -> None:
        """Append complete lines. Raises OutputError where that fails; earlier lines are kept."""
        data = harmless(text).encode()
        with self._target.sentences(f"{self._count:,} lines of this run are in it"):
            written = 0
            try:
                while written < len(data):
                    written += self._file.write(data[written:]) or 0
            except OSError:
                if written and self._file.seekable():
                    self._file.truncate(self._file.seek(0, os.SEEK_END) - written)
                raise
        self._count += data.count(b"\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def claim(targets: Sequence[Target], rewritten: Path | None = None) -> None:
    """Check all output files of a command before its work.

    `rewritten` is a file that the command updates: a baseline. Raises OutputError for a file that cannot be written,
    is read, is where standard output goes, or is named twice.
    """
    taken: list[tuple[str, Path]] = [("the baseline", rewritten)] if rewritten is not None else []
    for target in targets:
        target.require_writable()
        for name, number in (("standard output", 1), ("standard error", 2)):
            if _is_redirected_to(target.path, number):
                raise target.refusal(f"{name} is written there too", expected="a file for each")
        for option, path in taken:
            if _same_place(path, target.path):
                raise target.refusal(f"{option} is the same file", expected="a file for each")
        taken.append((f"{target.option} {target.path}", target.path))


def keep_streams_off(reads: Iterable[Path]) -> None:
    """Raise OutputError where a stream is appended to a file that the command reads: `inspect m >> m`, or `2>> m`."""
    for name, number in (("standard output", 1), ("standard error", 2)):
        with contextlib.suppress(OSError):
            info = os.fstat(number)
            if stat.S_ISREG(info.st_mode) and (file := _read_file_behind(info, reads)):
                raise OutputError(
                    f"{name} is written to {file}, which the command reads.", advice="send it to another file."
                )


def advice_for(error: OSError) -> str | None:
    """Return the advice for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room, or write to another disk."
    return "give write permission, or choose another name." if error.errno in _IN_PLACE else None


def descriptor(path: Path) -> int | None:
    """Return the file descriptor behind a path such as /dev/stdout or /dev/fd/63, or None."""
    place = os.path.abspath(path)
    for _ in range(40):
        if found := re.fullmatch(rf"/(?:dev/fd|proc/(?:self|{os.getpid()})/fd)/(\d{{1,9}})", place):
            return int(found[1])
        if not os.path.islink(place):
            return None
        place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
    return None


class _TornError(OSError):
    """A file that had to be written in place, and is incomplete."""


def _write(path: Path, data: bytes) -> None:
    if special := _open_special(path):
        with special:
            _write_all(special, data)
        return
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        if error.errno not in _IN_PLACE or not os.path.isfile(path):
            raise
        _write_in_place(path, data)


def _write_in_place(path: Path, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        try:
            _write_all(file, data)
            file.truncate()
        except OSError as error:
            raise _TornError(error.errno, error.strerror) from error


def _write_all(file: IO[bytes], data: bytes) -> None:
    written = 0
    while written < len(data):
        written += file.write(data[written:]) or 0


def _open_special(path: Path) -> IO[bytes] | None:
    """Return an unbuffered file for a descriptor, a device or a pipe; None for a regular file or a new one."""
    if (number := descriptor(path)) is not None:
        if number == 1 and sys.stdout is not None:
            sys.stdout.flush()
        return os.fdopen(os.dup(number), "wb", buffering=0)
    info = _status(path)
    return None if info is None or stat.S_ISREG(info.st_mode) else path.open("wb", buffering=0)


def _open_lines(path: Path) -> IO[bytes]:
    """Return a file to append lines to, its incomplete last line dropped."""
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666), "r+b", buffering=0)
    end = file.seek(0, os.SEEK_END)
    tail = b""
    while b"\n" not in tail and len(tail) < end:
        start = max(0, end - len(tail) - 2**16)
        file.seek(start)
        tail = (file.read(end - len(tail) - start) or b"") + tail
    last = tail.rpartition(b"\n")[2]
    if last and is_json(last):
        _write_all(file, b"\n")
    elif last:
        file.truncate(end - len(last))
    return file


def is_json(line: bytes) -> bool:
    """Whether a line is complete, though its end of line is missing."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is(path: Path, info: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), info)
    except OSError:
        return False


def _read_file_behind(info: os.stat_result, reads: Iterable[Path]) -> Path | None:
    """Return the file with this status among those that are read with some paths, or None."""
    folders: set[Path] = set()
    return next((file for read in reads for file in files_read_with(read, folders) if _is(file, info)), None)


def _same_place(a: Path, b: Path) -> bool:
    """Whether two outputs are one file; a terminal or /dev/null may receive two texts."""
    info = _status(b)
    if info is None:
        return os.path.realpath(a) == os.path.realpath(b)
    return (stat.S_ISREG(info.st_mode) or stat.S_ISFIFO(info.st_mode)) and descriptor(b) is None and _is(a, info)


def _is_redirected_to(path: Path, number: int) -> bool:
    with contextlib.suppress(OSError):
        info = os.fstat(number)
        return descriptor(path) is None and stat.S_ISREG(info.st_mode) and _is(path, info)
    return False
