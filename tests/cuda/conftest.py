"""One layer of each kind, on the CPU and on CUDA, and commands run on both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag import Recurrence, extract_recurrences, known_families
from tests.cli.conftest import run as run
from tests.cuda.same import TOLERANCE, assert_same
from tests.device import cuda as cuda
from tests.families.synthetic import config
from tests.reparam.test_every_spelling import rates_below_one

KINDS = {
    "selective": "mamba:state-spaces/mamba, transformers, mambapy, fla",
    "channels": "s4d:state-spaces/s4 v4, SSMKernelDiag",
    "real channels": "s4d:state-spaces/s4 v4, SSMKernelDiag, real",
    "many inputs": "lru:minimal-LRU, lrnnx",
    "dense": "s4:state-spaces/s4 v4, companion",
}
"""A spelling of each layout that a recurrence can have."""
SPELLINGS = {
    f"{family.name}:{spelling.name}": (family, spelling) for family in known_families() for spelling in family.spellings
}


def slow_but(value: object, *fast: object) -> list[pytest.MarkDecorator]:
    """Return the marks of a parameter of which the fast suite takes some values."""
    return [] if value in fast else [pytest.mark.slow]


@pytest.fixture(params=[pytest.param(kind, marks=slow_but(kind, "channels")) for kind in KINDS])
def small(request: pytest.FixtureRequest, write_model: Callable[..., Path]) -> Path:
    """A model of one layer of 4 channels and 4 modes, all of them stable; in the fast suite of the commonest kind."""
    family, spelling = SPELLINGS[KINDS[request.param]]
    return write_model(rates_below_one(family, spelling), config(family, spelling), name=family.name)


@pytest.fixture
def pair(small: Path, cuda: str) -> tuple[Recurrence, Recurrence]:
    """Its recurrence on CUDA and on the CPU."""
    away, home = (extract_recurrences(small, device=device)[0] for device in (cuda, "cpu"))
    return away, home


@pytest.fixture
def both(run: Callable[..., tuple[int, str, str]], cuda: str) -> Callable[..., None]:
    """Run a command on CUDA and on the CPU, and compare exit code, stderr and the document."""

    def compare(*arguments: object, tolerance: float = TOLERANCE) -> None:
        (code, output, errors), (home_code, home, home_errors) = (
            # Quiet: progress shows after a second or two, which one of the two may take and the other not.
            run(*arguments, "--quiet", "--format", "json", "--device", device)
            for device in (cuda, "cpu")
        )
        assert (code, errors) == (home_code, home_errors)
        assert_same(json.loads(output), json.loads(home), tolerance=tolerance)

    return compare
