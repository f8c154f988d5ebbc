"""https://: a file on a server, and those beside it that a model usually has, as no server lists its folders."""

from __future__ import annotations

import re
import threading
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ssmdiag.checkpoint.file_names import INDEX, WEIGHTS
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.checkpoint.sources.http import Answer, HttpFile, Web, credentials
from ssmdiag.checkpoint.sources.interface import Source
from ssmdiag.checkpoint.sources.place import Kind, Place
from ssmdiag.checkpoint.sources.ranged import RangedFile
from ssmdiag.errors import RemoteError

LOOKED_FOR = (*(f"{name}{end}" for name in WEIGHTS for end in ("", INDEX)), "config.json", ".metadata")
"""What is asked for in a folder: an address that ends with a slash."""
ABSENT = (404, 410)
_HUB_PAGE = re.compile(r"/([\w.-]+/[\w.-]+)(?:/(?:tree|blob)/([^/]+)(/.*)?)?/?")


class Website(Place):
    """One server. Keys are paths; an address's query goes with the file that it names, and with no other."""

    lists = False
    not_kept = ("_web", "_found", "_listed", "_lock")

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address, self._headers = credentials(address)
        parts = urlsplit(self._address)
        self._folder = parts.path.endswith("/") or not parts.path
        self._named = parts.path.strip("/")
        self.name = parts.hostname or ""
        self._start()

    def _start(self) -> None:
        self._web = Web(self.traffic)
        self._lock = threading.Lock()
        self._found: dict[str, RangedFile | Answer] = {}
        self._listed: list[str] | None = None

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._start()

    def shown(self, key: str) -> str:
        parts = urlsplit(self._address)
        return urlunsplit((parts.scheme, parts.netloc, f"/{key}" if key else "", "", ""))

    def kind(self, key: str) -> Kind | None:
        if self._folder and key == self._named:
            return "folder"
        found = self._ask(key)
        if isinstance(found, RangedFile):
            return "file"
        if key != self._named:
            return None  # a bucket answers 403 for what is not there
        raise self._refusal(key, found)

    def names(self, key: str) -> list[str]:
        if not self._folder or key != self._named:
            raise self.unlisted(key)
        if self._listed is None:
            below = {name: f"{key}/{name}".strip("/") for name in LOOKED_FOR}
            for path in below.values():
                self.open_ahead(path)
            self._listed = [name for name, path in below.items() if self._coming_file(path)]
        return self._listed

    def opened(self, key: str) -> Source:
        found = self._ask(key)
        with self._lock:
            self._found.pop(key, None)
        if isinstance(found, RangedFile):
            return found
        raise self._refusal(key, found)

    def _coming_file(self, key: str) -> bool:
        """Whether a file that was opened ahead is there; it stays open for `source`."""
        try:
            source = self._coming[key].result()
        except RemoteError:
            del self._coming[key]
            return False
        with self._lock:
            self._found[key] = source  # type: ignore[assignment]
        del self._coming[key]
        return True

    def _ask(self, key: str) -> RangedFile | Answer:
        with self._lock:
            if key in self._found:
                return self._found[key]
        file = HttpFile(self._web, RemotePath(self, key), self._url(key), self._headers)
        found = file.opened()
        with self._lock:
            self._found[key] = found
            if key == self._named and isinstance(found, RangedFile):
                self.revision = file.version
        return found

    def _url(self, key: str) -> str:
        parts = urlsplit(self._address)
        if key == self._named:
            return self._address
        return urlunsplit((parts.scheme, parts.netloc, f"/{quote(unquote(key), safe='/~')}", "", ""))

    def _refusal(self, key: str, answer: Answer) -> RemoteError:
        shown = self.shown(key)
        if answer.status in ABSENT:
            return RemoteError(f"{shown} does not exist (status {answer.status}).", advice=self._other_address())
        if answer.status in (401, 403):
            return RemoteError(
                f"{shown}: the server refuses access (status {answer.status}).",
                advice=self._other_address("give a signed address, or https://USER:PASSWORD@…; one may have expired."),
            )
        return RemoteError(f"{shown} cannot be read: status {answer.status}.", advice="check the address.")

    def _other_address(self, usual: str = "check the address; that of a folder ends with a slash.") -> str:
        page = _HUB_PAGE.fullmatch(urlsplit(self._address).path)
        if page is None or self.name not in ("huggingface.co", "hf.co"):
            return usual
        return f"for a model on the hub: hf://{page[1]}{f'@{page[2]}' if page[2] else ''}{page[3] or ''}"
