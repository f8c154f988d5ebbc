"""Where a checkpoint is: a path on this machine, or an address (`hf://`, `https://`, `s3://`, `gs://` …)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.checkpoint.remote_path import RemotePath

if TYPE_CHECKING:
    from ssmdiag.checkpoint.sources import Source

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


Location = Path | RemotePath


def locate(path: str | Location) -> Location:
    """Return where a path or an address leads to. Asks no network, and raises nothing: reading it does.

    >>> locate("runs/model.safetensors").name, str(locate("hf://state-spaces/mamba-130m-hf/config.json"))
    ('model.safetensors', 'hf://state-spaces/mamba-130m-hf/config.json')
    >>> str(locate("https://me:secret@example.org/a/model.pt?signature=secret"))
    'https://example.org/a/model.pt'
    """
    if not isinstance(path, str):
        return path
    if not is_address(path):
        return Path(path)
    from ssmdiag.checkpoint.sources.places import place_of

    return RemotePath(*place_of(path))


def is_address(text: str) -> bool:
    """Whether a text is an address, and not a path on this machine."""
    return _ADDRESS.match(text) is not None


def entries(folder: Location, pattern: str = "*", most: int | None = None) -> list[Location]:
    """Return what is in a folder, so many entries at most, in order. Raises OSError where it cannot be listed."""
    found: Iterator[Any] = iter(folder.iterdir() if pattern == "*" else folder.glob(pattern))
    return sorted(itertools.islice(found, most))


def is_listed(folder: Location) -> bool:
    """Whether what is in a folder can be asked: not of a server of files."""
    return not isinstance(folder, RemotePath) or folder.place.lists


def source_of(path: Location) -> Source:
    """Return the bytes of a file. Raises CheckpointError, EOFError, OSError."""
    from ssmdiag.checkpoint.sources import LocalFile

    return path.place.source(path.key) if isinstance(path, RemotePath) else LocalFile(path)


def open_ahead(paths: list[Location]) -> None:
    """Begin to open files that are not on this machine, all at once: each takes a request or two."""
    for path in paths:
        if isinstance(path, RemotePath):
            path.place.open_ahead(path.key)


def size_of(path: Location) -> int:
    """Return the size of a file in bytes."""
    return path.place.size(path.key) if isinstance(path, RemotePath) else path.stat().st_size


def real_path(path: Location) -> str:
    """Return what two names of one file share: links are followed."""
    return str(path) if isinstance(path, RemotePath) else str(path.resolve())
