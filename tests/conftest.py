"""Fixtures shared by all tests. Nothing downloads, sleeps or writes outside tmp_path."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; read when torch is imported

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.recurrence.modal import Recurrence


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a state dict (and a config.json) as a model directory; return the directory."""

    def write(state: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, name: str = "model") -> Path:
        directory = tmp_path / name
        directory.mkdir()
        save_file({key: value.contiguous() for key, value in state.items()}, directory / "model.safetensors")
        if config is not None:
            (directory / "config.json").write_text(json.dumps(config))
        return directory

    return write


@pytest.fixture
def read_model(write_model: Callable[..., Path]) -> Callable[..., list[Recurrence]]:
    """Write a state dict and read its recurrences back; keywords other than `config` are assumptions."""

    def read(
        state: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, **assume: str
    ) -> list[Recurrence]:
        return extract_recurrences(write_model(state, config), assume=assume)

    return read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Rewrite the golden reports; read them in review.")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but one in so many of a test's cases, where `one_in` says how many."""
    seen: Counter[str] = Counter()
    for item in items:
        share = item.get_closest_marker("one_in")
        if share is not None:
            test = item.nodeid.partition("[")[0]
            if seen[test] % share.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[test] += 1
