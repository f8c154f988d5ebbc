"""s3://, gs:// and whatever else fsspec knows: it brings credentials, retries and addresses of each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.remote_path import RemotePath, without_secrets
from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.place import Kind, Place
from ssmdiag.checkpoint.sources.ranged import HEAD, RangedFile
from ssmdiag.errors import RemoteError

T = TypeVar("T")
DRIVERS = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
"""The package that fsspec needs for a kind of address."""
VERSIONS = ("ETag", "etag", "version_id", "md5Hash", "mtime", "LastModified", "updated", "created")
"""Under which of these a file system tells the version of a file."""


class Buckets(Place):
    """One bucket, or one host, of a file system of fsspec."""

    not_kept = ("_system", "_lock")

    def __init__(self, scheme: str, authority: str) -> None:
        super().__init__()
        self._scheme, self._authority = scheme, authority
        self.name = authority.rpartition("@")[2]
        self._system: Any = None
        self._lock = threading.Lock()

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._system, self._lock = None, threading.Lock()

    def shown(self, key: str) -> str:
        return f"{self._scheme}://{self.name}{f'/{key}' if key else ''}"

    def kind(self, key: str) -> Kind | None:
        try:
            told = self._ask(key, lambda system, path: system.info(path))
        except FileNotFoundError:
            return None
        return "folder" if told["type"] == "directory" else "file"

    def names(self, key: str) -> list[str]:
        try:
            found = self._ask(key, lambda system, path: system.ls(path, detail=False))
        except FileNotFoundError:
            return []
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found} - {""})

    def opened(self, key: str) -> Source:
        try:
            told = self._ask(key, lambda system, path: system.info(path))
        except FileNotFoundError as error:
            raise RemoteError(f"{self.shown(key)} does not exist.", advice="check the address.") from error
        size = told.get("size")
        if type(size) is not int or size < 0:
            raise RemoteError(f"{self.shown(key)}: its size is not known.", advice="download it.")
        version = next((str(told[name]) for name in VERSIONS if told.get(name)), None)
        self.revision = self.revision or version

        def fetch(start: int, end: int) -> bytes:
            content = self._ask(key, lambda system, path: system.cat_file(path, start=start, end=end))
            self.traffic.count(len(content), 0)
            if len(content) != end - start:
                raise RemoteError(
                    f"{self.shown(key)}: {len(content):,} bytes came of {end - start:,} that were asked for.",
                    advice="it may have been changed while it was read; try again.",
                )
            return bytes(content)

        return RangedFile(RemotePath(self, key), size, fetch, fetch(0, min(size, HEAD)) if size else b"")

    def _ask(self, key: str, question: Callable[[Any, str], T]) -> T:
        """Return the file system's answer. Raises FileNotFoundError, and RemoteError for whatever else it raises."""
        with self._lock:
            if self._system is None:
                self._system = self._opened_system()
        self.traffic.count(0)
        try:
            return question(self._system, self._system._strip_protocol(f"{self._scheme}://{self._authority}/{key}"))
        except FileNotFoundError:
            raise
        except Exception as error:  # the drivers' own kinds are many
            said = shortened(without_secrets(str(error).partition("\n")[0]), 200)
            raise RemoteError(
                f"{self.shown(key)} cannot be read: {type(error).__name__}{f': {said}' if said else ''}.",
                advice="check the address, and the credentials that its own tools take.",
            ) from error

    def _opened_system(self) -> Any:
        try:
            import fsspec  # type: ignore[import-untyped]
        except ImportError as error:
            raise self._lacks("fsspec", "pip install 'ssmdiag[remote]'") from error
        try:
            return fsspec.core.url_to_fs(f"{self._scheme}://{self._authority}/")[0]
        except ImportError as error:
            driver = DRIVERS.get(self._scheme)
            advice = f"pip install {driver}" if driver else shortened(str(error), 200)
            raise self._lacks(driver or "another package", advice) from error
        except Exception as error:
            if "not known" in str(error):
                raise RemoteError(
                    f"{self._scheme}:// is no kind of address that fsspec knows.",
                    expected="hf://, https://, s3://, gs:// or a path",
                ) from error
            raise RemoteError(f"{self.shown('')} cannot be opened: {type(error).__name__}.") from error

    def _lacks(self, package: str, advice: str) -> RemoteError:
        return RemoteError(f"reading from {self._scheme}:// needs {package}.", advice=advice)
