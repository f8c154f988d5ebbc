"""A stand-in for the Hugging Face hub, and for any server of files, on 127.0.0.1, that fails as it is told to.

Served are the files below a folder: as `/files/…`, and as repositories `/org/name/resolve/REVISION/…`. A repository
called `moved` sends those who ask on to another host name and port, as the hub does with large files; `gated` refuses.
"""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMIT = "c0ffee" + "0" * 34
OTHER_COMMIT = "decade" + "0" * 34
REVISIONS = {"main": COMMIT, COMMIT: COMMIT, "step1000": OTHER_COMMIT, OTHER_COMMIT: OTHER_COMMIT}


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    range: str | None
    authorization: str | None
    port: int


@dataclass
class StandIn:
    """What is served, how the next answers fail, and what was asked."""

    root: Path
    port: int = 0
    other_port: int = 0
    latency: float = 0.0
    faults: deque[str] = field(default_factory=deque)
    """One for each of the next answers with a file's bytes; "" for a sound one."""
    always: str = ""
    """The fault of every answer with a file's bytes."""
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, ending: str) -> list[Asked]:
        return [one for one in self.asked if one.path.partition("?")[0].endswith(ending)]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    world: StandIn

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        world = self.world
        port = self.server.server_address[1]
        world.asked.append(Asked(self.path, self.headers["Range"], self.headers["Authorization"], int(port)))
        time.sleep(world.latency)
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/(org/\w+)(?:/revision/(.+))?", path):
            self._model(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/(org/\w+)/resolve/([^/]+)/(.+)", path):
            self._resolve(found[1], found[2], found[3])
        elif path.startswith(("/files/", "/cdn/")):
            self._file(world.root / path.split("/", 2)[2])
        else:
            self._short(404)

    def _model(self, repo: str, revision: str) -> None:
        folder = self.world.root / repo
        if repo == "org/gated":
            self._short(403 if self.headers["Authorization"] else 401, "GatedRepo")
        elif not folder.is_dir():
            self._short(404, "RepoNotFound")
        elif revision not in REVISIONS:
            self._short(404, "RevisionNotFound")
        else:
            files = [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]
            told = {"id": repo, "sha": REVISIONS[revision], "siblings": [{"rfilename": file} for file in files]}
            self._short(200, body=json.dumps(told).encode())

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        path = self.world.root / repo / file
        if REVISIONS.get(revision) is None or not path.is_file():
            self._short(404, "EntryNotFound")
        elif repo == "org/moved":
            place = (
                f"http://localhost:{self.world.other_port}/cdn/{urllib.parse.quote(f'{repo}/{file}')}?signature=s3cret"
            )
            self._short(302, headers={"Location": place})
        else:
            self._file(path)

    def _file(self, path: Path) -> None:
        world = self.world
        if not path.is_file():
            return self._short(404)
        fault = world.faults.popleft() if world.faults else world.always
        if fault.isdecimal():
            return self._short(int(fault), headers={"Retry-After": "0"})
        if fault == "wait an hour":
            return self._short(429, headers={"Retry-After": "3600"})
        size = path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        headers = {"ETag": '"other"' if fault == "other version" else '"one"', "Accept-Ranges": "bytes"}
        if asked is None or fault == "no ranges":
            return self._short(200, headers=headers, body=path.read_bytes())
        start, end = int(asked[1]), min(int(asked[2]) + 1, size)
        if start >= size:
            return self._short(416, headers={"Content-Range": f"bytes */{size}"})
        if fault == "grown":
            size += 1
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        if fault == "other range":
            start, end = start + 1, end + 1
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if fault == "no content range":
            del headers["Content-Range"]
        length = len(body) + {"longer than said": -1, "shorter than said": 1}.get(fault, 0)
        self._start(206, {**headers, "Content-Length": str(length)})
        if fault == "torn":
            body = body[: len(body) // 2]
        if fault == "silent":
            time.sleep(1.0)
        self.wfile.write(body)
        if fault in ("torn", "shorter than said", "longer than said", "silent"):
            self.close_connection = True
        return None

    def _start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _short(self, status: int, code: str = "", headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        named = {"X-Error-Code": code} if code else {}
        self._start(status, {**named, **(headers or {}), "Content-Length": str(len(body))})
        self.wfile.write(body)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that leaves early is what some tests are about."""


@contextmanager
def serve(root: Path, latency: float = 0.0) -> Iterator[StandIn]:
    """Serve a folder on two ports of this machine."""
    world = StandIn(root, latency=latency)
    handler = type("Handler", (_Handler,), {"world": world})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    world.port, world.other_port = (int(server.server_address[1]) for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield world
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()
