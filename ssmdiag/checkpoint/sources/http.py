"""Ranges of a file over HTTP: connections are kept, redirects resolved once, and every answer is checked.

A server is believed nothing: it must say that it sends the range that was asked for (206), of a file of the same size
and version as before, and send all of it in time. Passwords and signatures of an address appear in no message.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import re
import ssl
import threading
import time
import urllib.request
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit, urlunsplit

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.checkpoint.sources.place import Traffic
from ssmdiag.checkpoint.sources.ranged import HEAD, RangedFile
from ssmdiag.errors import RemoteError
from ssmdiag.version import __version__

TIMEOUT = 20.0
"""Seconds without a byte after which an answer counts as lost."""
SLOWEST = 20_000
"""Bytes a second that an answer must have, beside the time it may take to begin."""
WAITS = (0.5, 1.0, 2.0)
"""Seconds before a request is made again."""
LONGEST_WAIT = 30.0
"""Most seconds that a server may ask to wait."""
MOST_REDIRECTS = 5
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_PIECE = 1 << 20
_FRESH = "try again; if it goes on, download the file and inspect the copy."


class _LostError(Exception):
    """An answer that did not come, or not whole; another attempt may succeed."""


@dataclass(frozen=True)
class Answer:
    """What a server answered to a request for a range."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    url: str
    """Where redirects led."""
    private: bool
    """Whether credentials may be sent there again."""


class Web:
    """Requests to servers, counted; connections stay open for the next one."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        weakref.finalize(self, _close_all, self._idle)

    def get(self, url: str, shown: str, headers: Mapping[str, str], span: tuple[int, int] | None, most: int) -> Answer:
        """Return the answer to a request for a range, or for the whole; another status than 200 and 206 has no body.

        A body of more than `most` bytes is not read. Raises RemoteError.
        """
        lost = ""
        for wait in (*WAITS, None):
            try:
                answer = self._redirected(url, shown, headers, span, most)
            except _LostError as error:
                lost, pause = str(error), wait
            else:
                if answer.status not in _AGAIN:
                    return answer
                lost, pause = f"status {answer.status}", _pause(answer, wait)
            if pause is None:
                break
            time.sleep(pause)
        raise RemoteError(f"{shown} cannot be read: {lost}.", advice=_FRESH)

    def _redirected(
        self, url: str, shown: str, headers: Mapping[str, str], span: tuple[int, int] | None, most: int
    ) -> Answer:
        began: bool | None = None
        headers = dict(headers)
        for _ in range(MOST_REDIRECTS + 1):
            answer, public = self._once(url, shown, headers, span, most, began)
            began = public if began is None else began
            if answer.status not in (301, 302, 303, 307, 308) or "location" not in answer.headers:
                return answer
            target = urljoin(url, answer.headers["location"])
            before, after = urlsplit(url), urlsplit(target)
            if after.scheme not in ("http", "https") or (before.scheme == "https" != after.scheme):
                raise RemoteError(f"{shown} leads to an address of another kind, {shortened(after.scheme)}://.",
                                  expected=before.scheme)  # fmt: skip
            if _place(before) != _place(after):
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            url = target
        raise RemoteError(f"{shown} leads from one address to the next without end.")

    def _once(
        self, url: str, shown: str, headers: Mapping[str, str], span: tuple[int, int] | None, most: int,
        began_public: bool | None,
    ) -> tuple[Answer, bool | None]:  # fmt: skip
        """Return the answer of one server, and whether it is a public one, where that is known."""
        parts = urlsplit(url)
        sent = {"User-Agent": f"ssmdiag/{__version__}", **headers, "Accept-Encoding": "identity"}
        if span:
            sent["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        connection, used = self._connection(parts)
        try:
            try:
                if connection.sock is None:
                    connection.connect()
                public = _is_public(connection, parts)
                if began_public and public is False:
                    raise RemoteError(f"{shown} leads to an address within a private network; it was not asked.")
                connection.request("GET", _target(parts), headers=sent)
                self._traffic.count(0)
                response = connection.getresponse()
            except (ConnectionError, http.client.RemoteDisconnected):
                if not used:
                    raise
                connection.close()  # it had been closed while it was idle
                connection.request("GET", _target(parts), headers=sent)
                self._traffic.count(0)
                response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            body, whole = self._body(response, found, most)
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise RemoteError(
                f"{shown}: the certificate of {parts.hostname} is not valid ({error.verify_message}).",
                advice="set SSL_CERT_FILE where a certificate of your own signs it.",
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise _LostError(_reason(error, parts)) from error
        except BaseException:
            connection.close()
            raise
        if whole and not response.will_close:
            response.close()  # read to its end, it does not close itself
            with self._lock:
                self._idle.setdefault((parts.scheme, parts.netloc), []).append(connection)
        else:
            connection.close()
        return Answer(response.status, found, body, url, "Authorization" in headers), public

    def _body(self, response: http.client.HTTPResponse, headers: Mapping[str, str], most: int) -> tuple[bytes, bool]:
        """Return the body, and whether all of it was read: of a redirect or a refusal none is."""
        if response.status not in (200, 206):
            little = response.length is not None and response.length <= _PIECE
            if little:
                self._traffic.count(len(response.read()), 0)
            return b"", little
        if headers.get("content-encoding", "identity") != "identity":
            raise RemoteError("the server compresses its answer, which was not asked for.", advice="download the file.")
        announced = response.length
        if announced is not None and announced > most:
            return b"", False
        pieces: list[bytes] = []
        size, until = 0, time.monotonic() + TIMEOUT + most / SLOWEST
        while piece := response.read1(_PIECE):
            pieces.append(piece)
            size += len(piece)
            self._traffic.count(len(piece), 0)
            if size > most:
                return b"", False
            if time.monotonic() > until:
                raise TimeoutError("it is too slow")
        if announced is not None and size != announced:
            raise http.client.IncompleteRead(b"", announced - size)
        return b"".join(pieces), True

    def _connection(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if idle := self._idle.get((parts.scheme, parts.netloc)):
                return idle.pop(), True
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        if (proxy := _proxy(parts)) is None:
            return kind(parts.hostname or "", parts.port, timeout=TIMEOUT), False
        connection = kind(proxy.hostname or "", proxy.port, timeout=TIMEOUT)
        if secure:
            connection.set_tunnel(parts.hostname or "", parts.port, headers=_basic(proxy, "Proxy-Authorization"))
        return connection, False


class HttpFile:
    """One file on a server: `opened` returns it, or the first answer that says why not."""

    def __init__(self, web: Web, path: RemotePath, url: str, headers: Mapping[str, str]) -> None:
        self._web, self._path, self._url, self._headers = web, path, url, headers
        self._version: str | None = None
        self._size = 0
        self._resolved: Answer | None = None

    def opened(self) -> RangedFile | Answer:
        """Ask for the first bytes. Raises RemoteError for a server that does not send ranges."""
        answer = self._web.get(self._url, str(self._path), self._headers, (0, HEAD), HEAD)
        if answer.status == 416 and re.fullmatch(r"bytes \*/0", answer.headers.get("content-range", "")):
            return RangedFile(self._path, 0, self.fetch)
        if answer.status not in (200, 206):
            return answer
        if answer.status == 206:
            self._size = self._checked(answer, 0, HEAD)
        else:  # a whole file that is no longer than the range
            length = answer.headers.get("content-length", "")
            if not answer.body and length != "0":
                raise self._no_ranges(length)
            self._size = len(answer.body)
        self._resolved, self._version = replace(answer, body=b""), version_of(answer)
        return RangedFile(self._path, self._size, self.fetch, answer.body)

    @property
    def version(self) -> str | None:
        """What the server calls the version of the file that was opened."""
        return self._version

    def fetch(self, start: int, end: int) -> bytes:
        """Return a range. Raises RemoteError."""
        for again in (False, True):
            at = self._resolved
            url = at.url if at else self._url
            headers = self._headers if at is None or at.private else _without_credentials(self._headers)
            answer = self._web.get(url, str(self._path), headers, (start, end), end - start)
            if answer.status not in (401, 403, 404, 410) or again or url == self._url:
                break
            self._resolved = None  # signed addresses expire
        if answer.status == 416:
            raise self._changed("it is shorter than it was")
        if answer.status == 200:
            raise self._no_ranges(answer.headers.get("content-length", ""))
        if answer.status != 206:
            raise RemoteError(f"{self._path} cannot be read any more: status {answer.status}.", advice=_FRESH)
        if self._checked(answer, start, end) != self._size or version_of(answer) != self._version:
            raise self._changed("its version is another")
        if self._resolved is None:
            self._resolved = replace(answer, body=b"")
        return answer.body

    def _checked(self, answer: Answer, start: int, end: int) -> int:
        """Return the file's size. Raises RemoteError where an answer is not the range that was asked for."""
        said = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("content-range", ""))
        size = int(said[3]) if said else -1
        expected = (start, min(end, size) - 1)
        if not said or (int(said[1]), int(said[2])) != expected or len(answer.body) != expected[1] + 1 - start:
            sent = shortened(answer.headers.get("content-range", "no Content-Range"))
            raise RemoteError(
                f"{self._path}: the server sent other bytes than were asked for ({sent}, {len(answer.body):,} bytes).",
                expected=f"bytes {start}-{end - 1}",
                advice="download the file and inspect the copy.",
            )
        return size

    def _no_ranges(self, length: str) -> RemoteError:
        all_of_it = f"all {int(length):,} bytes" if re.fullmatch(r"\d{1,18}", length) else "the whole file"
        return RemoteError(
            f"{self._path}: the server does not send parts of a file; it would send {all_of_it}.",
            expected="status 206 to a request with a Range",
            advice="download the file and inspect the copy.",
        )

    def _changed(self, how: str) -> RemoteError:
        return RemoteError(f"{self._path} was changed on the server while it was read ({how}).", advice="try again.")


def version_of(answer: Answer) -> str | None:
    """Return what identifies the version of a file: its ETag, or when it was modified."""
    return answer.headers.get("etag") or answer.headers.get("last-modified")


def credentials(url: str) -> tuple[str, dict[str, str]]:
    """Return an address without its user and password, and the header that stands for them."""
    parts = urlsplit(url)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="")
    return urlunsplit(plain), _basic(parts, "Authorization")


def _basic(parts: SplitResult, header: str) -> dict[str, str]:
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {header: f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _without_credentials(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() != "authorization"}


def _place(parts: SplitResult) -> tuple[Any, ...]:
    return parts.scheme, parts.hostname, parts.port


def _target(parts: SplitResult) -> str:
    """Return what a request line asks for: the whole address where a proxy is asked without a tunnel."""
    path = quote(urlunsplit(("", "", parts.path or "/", parts.query, "")), safe="!#$%&'()*+,/:;=?@[]~")
    plain = parts.scheme == "http" and _proxy(parts) is not None
    return f"http://{parts.netloc}{path}" if plain else path


def _proxy(parts: SplitResult) -> SplitResult | None:
    proxies = urllib.request.getproxies()
    if parts.scheme not in proxies or urllib.request.proxy_bypass(parts.hostname or ""):
        return None
    address = proxies[parts.scheme]
    return urlsplit(address if "://" in address else f"http://{address}")


def _is_public(connection: http.client.HTTPConnection, parts: SplitResult) -> bool | None:
    """Whether the server has an address of the public internet; None behind a proxy, which hides it."""
    if _proxy(parts) is not None or connection.sock is None:
        return None
    with contextlib.suppress(ValueError, OSError):
        return ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0]).is_global
    return None


def _pause(answer: Answer, wait: float | None) -> float | None:
    """Return how long to wait before the next attempt; None where it is the last, or the server asks for too long."""
    if wait is None:
        return None
    asked = answer.headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}", asked):
        seconds = float(asked)
    else:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = 0.0
    return None if seconds > LONGEST_WAIT else max(wait, seconds)


def _reason(error: Exception, parts: SplitResult) -> str:
    if isinstance(error, TimeoutError):
        return f"{parts.hostname} did not answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was closed before all of it had come"
    if isinstance(error, ConnectionRefusedError):
        return f"{parts.hostname} refuses the connection"
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return f"{parts.hostname} closed the connection"
    if isinstance(error, http.client.HTTPException | ValueError):
        return f"{parts.hostname} answered with something other than HTTP ({shortened(str(error))})"
    said = getattr(error, "strerror", None) or str(error)
    return f"{parts.hostname} cannot be reached ({shortened(said)})"


def _close_all(idle: dict[Any, list[http.client.HTTPConnection]]) -> None:
    for connections in idle.values():
        for connection in connections:
            connection.close()
