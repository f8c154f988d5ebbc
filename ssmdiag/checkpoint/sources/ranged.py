"""A file that is asked for range by range, wherever it is: what was fetched is kept, and what is announced comes ahead.

A request takes as long as moving a megabyte, so ranges that lie close together are joined, and a file that is read from
front to back is fetched in pieces that double: eight requests for the 13 MB before the values of a GGUF.
"""

from __future__ import annotations

import io
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from ssmdiag.checkpoint.sources.crew import submit

if TYPE_CHECKING:
    from ssmdiag.checkpoint.remote_path import RemotePath

HEAD = 128 << 10
"""Bytes fetched when a file is opened: most headers, and all of a small file."""
TAIL = 64 << 10
"""Bytes fetched of a file's end at least: a zip archive has its table of contents there."""
GAP = 128 << 10
"""Ranges so close are fetched as one."""
LARGEST = 8 << 20
"""Bytes of one request at most; more are shared out."""
AHEAD, FARTHEST = 16 << 10, 16 << 20
"""Bytes that a stream fetches first after a jump, and at most."""
MOST_KEPT = 128 << 20
"""Bytes of one file that are kept in memory; what was fetched first goes first."""


@dataclass(slots=True, eq=False)
class _Span:
    start: int
    end: int
    content: bytes | Future[bytes]

    def bytes(self) -> bytes:
        if isinstance(self.content, Future):
            self.content = self.content.result()
        if len(self.content) != self.end - self.start:
            raise EOFError(f"{len(self.content):,} bytes came of {self.end - self.start:,}")
        return self.content


class RangedFile:
    """A file of known size; `fetch(start, end)` returns just these bytes, or raises RemoteError or EOFError."""

    def __init__(self, path: RemotePath, size: int, fetch: Callable[[int, int], bytes], head: bytes = b"") -> None:
        self.path, self.name, self.size = path, path.name, size
        self._fetch = fetch
        self._lock = threading.RLock()
        self._spans: list[_Span] = [_Span(0, len(head), head)] if head else []
        self._oldest: list[_Span] = list(self._spans)

    def read(self, start: int, length: int, ahead: int = 0) -> bytearray:
        """Return bytes; where a part of them must be fetched, at least `ahead` bytes from there on come with them."""
        end = start + length
        if not 0 <= start <= end <= self.size:
            raise EOFError(f"the file ends before byte {end:,}")
        content = bytearray(length)
        at = start
        with self._lock:
            while at < end:
                span = self._span_at(at) or self._get(at, end, ahead)
                part = memoryview(span.bytes())[at - span.start : end - span.start]
                content[at - start : at - start + len(part)] = part
                at += len(part)
        return content

    def kept_from(self, at: int) -> int:
        """Return how many bytes from here on need no request."""
        with self._lock:
            span = self._span_at(at)
            return span.end - at if span else 0

    def open(self) -> IO[bytes]:
        return io.BufferedReader(_Stream(self), AHEAD)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Begin to fetch what is not there yet, on several threads; `read` waits for it."""
        with self._lock:
            room = MOST_KEPT - sum(span.end - span.start for span in self._spans)
            inside = [(start, start + length) for start, length in ranges if start + length <= self.size]
            missing = [gap for start, end in inside for gap in self._missing(start, end)]
            for start, end in joined(missing):
                for first in range(start, end, LARGEST):
                    last = min(first + LARGEST, end)
                    if (room := room - (last - first)) < 0:
                        return
                    self._keep(_Span(first, last, submit(self._fetch, first, last)))

    def _span_at(self, at: int) -> _Span | None:
        """Return the kept span that holds a byte."""
        before = bisect_right(self._spans, at, key=lambda span: span.start)
        # A joined range may reach over spans that were there before it.
        return next((span for span in reversed(self._spans[:before]) if at < span.end), None)

    def _missing(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that no kept span holds."""
        while start < end:
            if span := self._span_at(start):
                start = span.end
                continue
            after = bisect_right(self._spans, start, key=lambda span: span.start)
            stop = min(end, self._spans[after].start) if after < len(self._spans) else end
            yield start, stop
            start = stop

    def _get(self, at: int, end: int, ahead: int) -> _Span:
        in_tail = ahead and at >= self.size - TAIL
        low, high = (max(0, self.size - TAIL), self.size) if in_tail else (at, min(max(end, at + ahead), self.size))
        start, end = next(part for part in self._missing(low, high) if part[1] > at)
        span = _Span(start, end, self._fetch(start, end))
        if end - start <= MOST_KEPT // 2:
            self._keep(span)
        return span

    def _keep(self, span: _Span) -> None:
        insort(self._spans, span, key=lambda one: one.start)
        self._oldest.append(span)
        kept = sum(one.end - one.start for one in self._spans)
        while kept > MOST_KEPT and len(self._oldest) > 1:
            gone = self._oldest.pop(0)
            self._spans = [one for one in self._spans if one is not gone]
            kept -= gone.end - gone.start


class _Stream(io.RawIOBase):
    """A ranged file as a seekable one, which reads as far ahead as it was read without a jump."""

    def __init__(self, file: RangedFile) -> None:
        self._file, self._at, self._from = file, 0, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = (0, self._at, self._file.size)[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset:,}")
        if base + offset != self._at:
            self._at = self._from = base + offset
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        length = max(0, min(len(buffer), self._file.size - self._at))
        if length:
            length = min(length, self._file.kept_from(self._at) or length)  # no request for what a buffer has room for
            ahead = min(max(AHEAD, self._at - self._from), FARTHEST)
            buffer[:length] = self._file.read(self._at, length, ahead)
        self._at += length
        return length


def joined(ranges: Iterable[tuple[int, int]], gap: int = GAP) -> list[tuple[int, int]]:
    """Return ranges (start, end) in order, those that overlap or lie close together as one.

    >>> joined([(500, 600), (0, 10), (12, 20)], gap=5)
    [(0, 20), (500, 600)]
    """
    found: list[list[int]] = []
    for start, end in sorted(ranges):
        if found and start - found[-1][1] <= gap:
            found[-1][1] = max(found[-1][1], end)
        else:
            found.append([start, end])
    return [(start, end) for start, end in found]
