"""A path in a place that is not on this machine, with as much of `pathlib.Path` as reading a checkpoint needs.

So folders, shards and the files beside the weights are looked for in one way everywhere. Making one asks no network.
"""

from __future__ import annotations

import errno
import fnmatch
import re
from collections.abc import Iterator
from functools import total_ordering
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.checkpoint.sources.place import Place

_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|(?<=\w)\?\S*")


@total_ordering
class RemotePath:
    """A file or a folder in a place that is not on this machine."""

    def __init__(self, place: Place, key: str = "") -> None:
        self.place = place
        self.key = key.strip("/")
        """Path within the place; "" for its top."""

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2] or self.place.name

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.place.shown(""), *filter(None, self.key.split("/")))

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self.place, self.key.rpartition("/")[0])

    def absolute(self) -> RemotePath:
        return self

    def exists(self) -> bool:
        return self.place.kind(self.key) is not None

    def is_file(self) -> bool:
        return self.place.kind(self.key) == "file"

    def is_dir(self) -> bool:
        return self.place.kind(self.key) == "folder"

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what is in a folder. Raises OSError where the place lists nothing."""
        return (self / name for name in self.place.names(self.key))

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        return (entry for entry in self.iterdir() if fnmatch.fnmatchcase(entry.name, pattern))

    def content(self, most: int) -> bytes:
        """Return a whole file. Raises OSError where it has more bytes."""
        source = self.place.source(self.key)
        if source.size > most:
            raise OSError(errno.EFBIG, f"it has {source.size:,} bytes, and at most {most:,} are read", str(self))
        return bytes(source.read(0, source.size))

    def __truediv__(self, name: str | Path) -> RemotePath:
        return RemotePath(self.place, f"{self.key}/{name}".replace("/./", "/"))

    def __str__(self) -> str:
        return self.place.shown(self.key)

    def __fspath__(self) -> str:
        """Return the address: whoever opens it as a file on this machine finds none."""
        return str(self)

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __hash__(self) -> int:
        return hash(str(self))


def without_secrets(text: str) -> str:
    """Return a text without the users, passwords and queries (signatures, tokens) of the addresses in it.

    >>> without_secrets("GET https://me:secret@example.org/model.pt?signature=secret failed")
    'GET https://example.org/model.pt failed'
    """
    return _SECRETS.sub("", text)
