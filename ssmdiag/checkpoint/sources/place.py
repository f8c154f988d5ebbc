"""A place that is not on this machine: what is in it, the bytes of its files, and what was moved."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import Future
from typing import Any, Literal

from ssmdiag.checkpoint.sources.crew import submit
from ssmdiag.checkpoint.sources.interface import Source

Kind = Literal["file", "folder"]


class Traffic:
    """How many bytes were moved, in how many requests; counted by several threads."""

    def __init__(self) -> None:
        self.bytes = self.requests = 0
        self._lock = threading.Lock()

    def count(self, size: int, requests: int = 1) -> None:
        with self._lock:
            self.bytes += size
            self.requests += requests

    def __reduce__(self) -> tuple[Any, ...]:
        return Traffic, ()


class Place:
    """A repository, a server or a bucket; it is asked nothing before it must be."""

    name = ""
    """What the folder at its top is called."""
    revision: str | None = None
    """What identifies the version that is read, once something was; None where the place does not say."""

    lists = True
    """Whether `names` returns all that is in a folder."""

    def __init__(self) -> None:
        self.traffic = Traffic()
        self._coming: dict[str, Future[Source]] = {}
        self._sizes: dict[str, int] = {}

    def shown(self, key: str) -> str:
        """Return the address of a file or folder in it, without names and keys of users."""
        raise NotImplementedError

    def kind(self, key: str) -> Kind | None:
        """Return what is there, None where nothing is. Raises RemoteError where the place does not answer."""
        raise NotImplementedError

    def names(self, key: str) -> list[str]:
        """Return the names in a folder. Raises OSError where the place lists none."""
        raise NotImplementedError

    def opened(self, key: str) -> Source:
        """Open a file. Raises RemoteError."""
        raise NotImplementedError

    def source(self, key: str) -> Source:
        """Return the bytes of a file. Raises RemoteError, EOFError."""
        coming = self._coming.pop(key, None)
        source = coming.result() if coming is not None else self.opened(key)
        self._sizes[key] = source.size
        return source

    def size(self, key: str) -> int:
        """Return the size of a file in bytes; one that was opened is not opened again."""
        return self._sizes[key] if key in self._sizes else self.source(key).size

    def open_ahead(self, key: str) -> None:
        """Begin to open a file, which `source` then returns."""
        if key not in self._coming:
            self._coming[key] = submit(self.opened, key)

    def unlisted(self, key: str) -> OSError:
        return OSError(errno.ENOTSUP, "what is there is not listed", self.shown(key))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_coming", *self.not_kept)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _coming={})

    not_kept: tuple[str, ...] = ()
    """Attributes that another process makes anew."""
