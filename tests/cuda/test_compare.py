"""Comparisons on a GPU: of a run's checkpoints, of two models, of what a conversion is to keep."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from safetensors.torch import load_file, save_file

from ssmdiag import Recurrence, compare_models, compare_run
from ssmdiag.compare.conversion import Outcome, prove_recurrence
from tests.compare.test_comparison import drifting, write_run
from tests.cuda.conftest import KINDS, SPELLINGS
from tests.cuda.same import assert_same
from tests.families.synthetic import config, state_dict

LAGS = (0, 1, 5, 40)
Pair = tuple[Recurrence, Recurrence]


def turned(recurrence: Recurrence) -> Recurrence:
    """Return the same layer with its modes, and its channels, in another order."""
    B, C = recurrence.input_matrix, recurrence.output_matrix
    if recurrence.layout == "many inputs":
        assert B is not None
        assert C is not None
        B, C = B.flip(0), C.flip(1)
    return replace(
        recurrence,
        log_eigenvalues=recurrence.log_eigenvalues.flip(0, 1),
        input_matrix=B if B is None or recurrence.layout == "many inputs" else B.flip(0, 1),
        output_matrix=C if C is None or recurrence.layout == "many inputs" else C.flip(1, 2),
        step=None,
    )


def test_a_conversion_is_proven_and_a_change_is_found(pair: Pair) -> None:
    if pair[1].dense is None:
        away, home = (prove_recurrence(each, turned(each), 1e-6, LAGS) for each in pair)
        assert_same(away, home)
        assert home.outcome is Outcome.REORDERED
    away, home = (
        prove_recurrence(each, replace(each, log_eigenvalues=each.log_eigenvalues * 1.01), 1e-6, LAGS) for each in pair
    )
    assert_same(away, home)
    assert home.outcome is (Outcome.DIFFERS if pair[1].dense is None else Outcome.SAME)


@pytest.mark.parametrize("memory", ["none", pytest.param("ends", marks=pytest.mark.slow)])
def test_a_run_is_followed(memory: Literal["none", "ends"], cuda: str, tmp_path: Path) -> None:
    paths = write_run(tmp_path, [0, 1000, 2000, 3000], drifting)
    assert_same(compare_run(paths, device=cuda, memory=memory), compare_run(paths, memory=memory))


@pytest.mark.slow
def test_the_commands_run(small: Path, both: Callable[..., None], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(small, other)
    values = {name: value * 1.01 for name, value in load_file(small / "model.safetensors").items()}
    save_file(values, other / "model.safetensors")
    both("compare", small, other, "--length", 64)
    both("compare", small, other, "--strict", "--length", 64)
    run = write_run(tmp_path, [0, 1000, 2000, 3000], drifting)
    both("compare", *run, "--memory", "none")


@pytest.mark.slow
def test_two_models_are_set_side_by_side(small: Path, write_model: Callable[..., Path], cuda: str) -> None:
    family, spelling = SPELLINGS[KINDS["selective"]]
    other = write_model(state_dict(spelling), config(family, spelling), name="other")
    away, home = (compare_models(small, other, device=device, context_length=64) for device in (cuda, "cpu"))
    assert_same(away, home)
