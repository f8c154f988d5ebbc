"""A plugin of pytest: diagnoses run on CUDA. `-p tests.cuda.elsewhere`, and `--pretend` where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest

import ssmdiag.diagnosis
from tests.device import pretending


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--pretend", action="store_true", help="on a pretended GPU")


@pytest.fixture(autouse=True)
def elsewhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    recognise = ssmdiag.diagnosis.recognise

    def on_cuda(*arguments: Any, **options: Any) -> Any:
        return recognise(*arguments, **(options | {"device": "cuda"}))

    monkeypatch.setattr(ssmdiag.diagnosis, "recognise", on_cuda)
    with pretending() if request.config.getoption("--pretend") else nullcontext():
        yield
