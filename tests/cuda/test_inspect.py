"""Diagnoses on a GPU: every spelling, every rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag import diagnose
from tests.cuda.conftest import KINDS, SPELLINGS, slow_but
from tests.cuda.same import assert_same
from tests.families.synthetic import config, state_dict

EACH = [pytest.param(name, id=name, marks=slow_but(name, KINDS["selective"])) for name in SPELLINGS]


@pytest.mark.parametrize("name", EACH)
def test_every_spelling_is_diagnosed_alike(name: str, write_model: Callable[..., Path], cuda: str) -> None:
    family, spelling = SPELLINGS[name]
    model = write_model(state_dict(spelling), config(family, spelling))
    away, home = diagnose(model, device=cuda, context_length=64), diagnose(model, context_length=64)
    assert (away.device, away.problems, away.notes) == (cuda, home.problems, home.notes)
    assert_same(away.layers, home.layers)
    assert_same(away.findings, home.findings)
    assert_same(away.alternatives, home.alternatives)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["inspect", pytest.param("check", marks=pytest.mark.slow)])
def test_both_commands_run(command: str, small: Path, both: Callable[..., None]) -> None:
    both(command, small, "--length", 64)
