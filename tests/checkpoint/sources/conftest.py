from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
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


@pytest.fixture
def hub(world: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in as the hub, an empty cache, and a token."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", world.url)
    template = f"{world.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return world
