"""Mamba-3, whose A is not stored and depends on the version of the code."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.diagnosis import diagnose, extract_recurrences
from ssmdiag.families import mamba2, mamba3
from ssmdiag.families.recognition import recognise
from ssmdiag.recurrence.modal import Recurrence
from tests.tolerances import RELATIVE

HEADS, RANK, STATE, INNER, WIDTH = 8, 1, 16, 64, 32


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def mixer(prefix: str, rank: int = RANK, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    state = {
        "dt_bias": draw(HEADS) - 4,
        "B_bias": draw(HEADS, rank, STATE),
        "C_bias": draw(HEADS, rank, STATE),
        "D": draw(HEADS),
        "in_proj.weight": draw(2 * INNER + 2 * STATE * rank + 3 * HEADS + 4, WIDTH),
        "B_norm.weight": draw(STATE),
        "C_norm.weight": draw(STATE),
        "out_proj.weight": draw(WIDTH, INNER),
    }
    return {f"{prefix}{name}": value for name, value in {**state, **others}.items()}


@pytest.mark.parametrize(
    ("config", "assume", "rate", "source"),
    [
        ({"ssm_cfg": {"layer": "Mamba3"}}, {}, 1.0, "usual"),
        (None, {}, 1.0, "usual"),
        ({"model_type": "mamba3"}, {}, math.log(2), "usual"),
        ({"a_activation": "softplus"}, {}, math.log(2), "file"),
        ({"model_type": "mamba3"}, {"a_activation": "heavy-tail"}, 1.0, "--assume"),
        (None, {"a_activation": "softplus"}, math.log(2), "--assume"),
    ],
)
def test_rate_at_zero_input_follows_the_version_of_the_code(
    read_model: Callable[..., list[Recurrence]],
    config: dict[str, Any] | None,
    assume: dict[str, str],
    rate: float,
    source: str,
) -> None:
    state = mixer("backbone.layers.0.mixer.")
    (found,) = read_model(state, config, **assume)
    step = np.logaddexp(0, state["backbone.layers.0.mixer.dt_bias"].numpy())
    np.testing.assert_allclose(found.rate[:, 0].numpy(), rate * step, rtol=RELATIVE["float64"], atol=0)
    assert not found.frequency.any()
    (assumption,) = found.assumptions
    assert assumption.source == source
    assert not found.time_invariant


def test_many_inputs_are_read_like_one(read_model: Callable[..., list[Recurrence]]) -> None:
    others = {"mimo_x": draw(HEADS, 4, 8), "mimo_z": draw(HEADS, 4, 8), "mimo_o": draw(HEADS, 4, 8)}
    (found,) = read_model(mixer("m.", rank=4, **others))
    assert found.log_eigenvalues.shape == (HEADS, 1)


def test_the_other_activation_is_worked_out_for_the_report(write_model: Callable[..., Path]) -> None:
    directory = write_model(mixer("m."))
    (heavy,) = extract_recurrences(directory)
    (alternative,) = diagnose(directory).alternatives
    ((name, slowest),) = alternative.others
    assert name == "softplus"
    assert slowest == pytest.approx(float(heavy.half_life.max()) / math.log(2), rel=1e-12)


def test_a_bias_of_in_proj_is_said_to_be_left_out(read_model: Callable[..., list[Recurrence]]) -> None:
    state = mixer("m.", **{"in_proj.bias": draw(2 * INNER + 2 * STATE + 3 * HEADS + 4)})
    assert any("left out" in note for note in read_model(state)[0].notes)


def test_mamba2_and_mamba3_do_not_claim_each_other(write_model: Callable[..., Path]) -> None:
    state = mixer("m.")
    assert not recognise(read_checkpoint(write_model(state, name="three")), families=[mamba2.FAMILY]).layers
    state["m.A_log"] = draw(HEADS)
    assert not recognise(read_checkpoint(write_model(state, name="two")), families=[mamba3.FAMILY]).layers
