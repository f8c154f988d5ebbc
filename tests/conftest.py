"""Fixtures shared by all tests. Nothing downloads, sleeps or writes outside tmp_path."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.doctest import DoctestModule

if TYPE_CHECKING:
    import torch

    from ssmdiag.recurrence.modal import Recurrence

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does; read when torch is imported
# torch is not imported here: the process that hands out the tests has no need of it.


@pytest.fixture
def write_model(tmp_path: Path) -> Callable[..., Path]:
    """Write a state dict (and a config.json) as a model directory; return the directory."""

    def write(state: Mapping[str, torch.Tensor], config: Mapping[str, Any] | None = None, name: str = "model") -> Path:
        from safetensors.torch import save_file

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
        from ssmdiag.diagnosis import extract_recurrences

        return extract_recurrences(write_model(state, config), assume=assume)

    return read


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start torch's own generator anew, so that no test's numbers depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)


@cache
def whole_package() -> frozenset[str]:
    """Import every module of ssmdiag but the one that runs it, and return their names."""
    import ssmdiag

    names = {module.name for module in pkgutil.walk_packages(ssmdiag.__path__, "ssmdiag.")} - {"ssmdiag.__main__"}
    for name in names:
        importlib.import_module(name)
    return frozenset(names)


@pytest.fixture
def monkeypatch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Replace things only when all of ssmdiag is imported.

    Commands import modules when they need them. One that is first imported while a function is replaced would keep the
    replacement for the tests that follow.
    """
    whole_package()
    return monkeypatch


@pytest.fixture(scope="module")  # before what a module sets up for its tests
def heard_signals() -> Generator[None]:
    """Let Ctrl-C and hang-up arrive here and in children: under nohup and in the background they are ignored."""
    defaults = {signal.SIGINT: signal.default_int_handler}
    if os.name == "posix":
        defaults[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.getsignal(number) for number in defaults}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, defaults[number])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="Rewrite the golden reports; read them in review.")


def pytest_configure(config: pytest.Config) -> None:
    """Try a quarter of the examples where the slow tests are left out."""
    if "not slow" in config.option.markexpr:
        from hypothesis import settings

        settings.register_profile("fast", settings.default, max_examples=25)
        settings.load_profile("fast")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    """Look for doctests in ssmdiag alone: to do so in tests/ imports every file there, those without a test too."""
    return [collector for collector in (yield) if not isinstance(collector, DoctestModule)]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: all of it stays, and to look through it over and over takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


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
