"""What is observed of a model on a GPU is what is observed of it on the CPU."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

import ssmdiag
from ssmdiag.probing.law import judge_law
from ssmdiag.probing.rounded import state_errors
from ssmdiag.recurrence.clock import Clock, Scan
from tests.cuda.conftest import slow_but
from tests.cuda.same import assert_same
from tests.probing import originals
from tests.probing.measured import drawn, measured
from tests.probing.test_clocks import ORIGINALS


@pytest.mark.slow
def test_retention_and_its_law(cuda: str) -> None:
    step, rate = drawn(3, 150, 70, 3)
    home = measured(step, step.flip(1), rate=rate, channels=8)
    away = measured(step.to(cuda), step.flip(1).to(cuda), rate=rate.to(cuda), channels=8)
    assert_same(away, home)
    assert_same(judge_law(away), judge_law(home))


def test_errors_of_a_rounded_state(cuda: str) -> None:
    draw = torch.Generator().manual_seed(0)
    step = torch.rand(1, 20, 4, generator=draw, dtype=torch.float64)
    rate = torch.rand(4, 1, generator=draw, dtype=torch.float64)
    x = torch.randn(1, 20, 4, 3, generator=draw, dtype=torch.float64)
    B, C = torch.randn(2, 1, 20, 2, 5, generator=draw, dtype=torch.float64)
    home = state_errors(Scan(Clock(step, rate), x, B, C, rate), 7)
    clock = Clock(step.to(cuda), rate.to(cuda))
    away = state_errors(Scan(clock, x.to(cuda), B.to(cuda), C.to(cuda), rate.to(cuda)), 7)
    assert_same(away, home)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_but(name, "fla HGRN")) for name in ORIGINALS])
def test_a_model(name: str, cuda: str) -> None:
    model = originals.drawn(ORIGINALS[name][1]())
    away = deepcopy(model).to(cuda)
    x = torch.randn(2, 12, originals.WIDTH, dtype=torch.float64)
    home = ssmdiag.probe(model, [x], cuts=1)
    there = ssmdiag.probe(away, [x], cuts=1)
    assert all(layer.observed for layer in home.layers)
    assert there.device == "cuda:0"
    assert_same(replace(there, digest=None), replace(home, digest=None))
    assert there.digest == home.digest
