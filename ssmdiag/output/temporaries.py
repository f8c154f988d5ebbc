"""Files that have a temporary name until they are complete, and the removal of those left by a dead process.

.ssmdiag-PLACE-PROCESS-NUMBER.tmp    in the folder of the final file; PLACE marks the machine
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import platform
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

_TEMPORARY = re.compile(r"\.ssmdiag-(?P<place>[0-9a-f]{8})-(?P<process>\d{1,10})-\d+\.tmp")
_waiting: dict[str, int] = {}
"""Temporaries that are not yet renamed, with the process that made them."""
_numbers = itertools.count()


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file that then replaces `path`; raises OSError.

    The target of a symbolic link is replaced and the link stays; a hard link keeps the old content.
    `durable`: the data are on disk before the rename.
    """
    place = place_of(path)
    try:
        before = os.stat(place)
    except FileNotFoundError:
        before = None
    temporary = _make_temporary(place.parent)
    try:
        if before is not None:
            with suppress(OSError, AttributeError):
                os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, stat.S_IMODE(before.st_mode))
        yield temporary
        if durable:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        _discard(str(temporary))


def place_of(path: Path) -> Path:
    """Return the path of a file, existing or new, with links followed; raises FileNotFoundError for a missing folder.

    As the system resolves it: `gone/../model.pt` does not exist, though `os.path.realpath` makes it model.pt.
    """
    place = os.fspath(path)
    for _ in range(40):
        folder, name = os.path.split(place)
        place = os.path.join(os.path.realpath(folder or os.curdir, strict=True), name)
        if not os.path.islink(place):
            return Path(place)
        place = os.path.join(os.path.dirname(place), os.readlink(place))
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def discard_temporaries() -> None:
    """Remove this process's unfinished temporaries; for exits that run no `finally`."""
    for path, process in list(_waiting.items()):
        if process == os.getpid():
            _discard(path)


def _make_temporary(folder: Path) -> Path:
    _sweep(folder)
    temporary = folder / f".ssmdiag-{_place()}-{os.getpid()}-{next(_numbers)}.tmp"
    _waiting[str(temporary)] = os.getpid()
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError:
        del _waiting[str(temporary)]
        raise
    return temporary


def _discard(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
    _waiting.pop(path, None)


def _sweep(folder: Path) -> None:
    """Remove temporaries of dead processes, on this machine only: those on others cannot be checked."""
    if os.name != "posix":
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found["place"] == _place() and entry.path not in _waiting and _is_gone(int(found["process"])):
                _discard(entry.path)


def _is_gone(process: int) -> bool:
    if process == os.getpid():
        return True  # the same number again: a container's first process always has the same number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


@cache
def _place() -> str:
    """Return a mark of this machine and of its process namespace (a container has its own)."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]
