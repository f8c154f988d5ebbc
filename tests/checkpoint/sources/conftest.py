from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmdiag.checkpoint.sources import http
from tests.checkpoint.sources.stand_in import StandIn, serve


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A server of tmp_path / "served", which is also the hub; nothing waits, and no proxy is asked."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr(http, "WAITS", (0.0, 0.0, 0.0))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(tmp_path / "served") as world:
        yield world
