"""Files under a temporary name until they are whole, and the end of those whose process did not finish them.

.ssmdiag-PLACE-PROCESS-NUMBER.tmp    in the folder of the file it becomes; PLACE marks the machine
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
"""Temporaries that are not yet in their place, with the process that made them."""
_numbers = itertools.count()


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield where to write a file that then takes the place of `path`; raises OSError.

    The target of a link is replaced and the link stays; another name of the same file (a hard link) keeps the old one.
    `durable`: on disk before it is renamed.
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
    """Return where a file is, or is to be, links followed; raises FileNotFoundError where a folder is not there.

    As the system finds it: `gone/../model.pt` is no model.pt, though `os.path.realpath` takes it for one.
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
    """Remove what this process has not put into its place; for an end that runs no `finally`."""
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
    """Remove temporaries of processes that are gone; of this machine alone, as others' cannot be asked for."""
    if os.name != "posix":
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found["place"] == _place() and entry.path not in _waiting and _is_gone(int(found["process"])):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_gone(process: int) -> bool:
    if process == os.getpid():
        return True  # the same number again: a container's first process has the same one every time
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


@cache
def _place() -> str:
    """Return a mark of this machine and, in a container, of its own numbering of processes."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]
