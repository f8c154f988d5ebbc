"""StripedHyena's filters against the recurrence that generates one token after another, in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel

Read = Callable[..., list[Recurrence]]
FILTERS, MODES, LAGS = 6, 4, 50


def evo1(path: str = "backbone.blocks.0.filter.") -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    radius, angle = rng.uniform(0.7, 0.999, (FILTERS, MODES)), rng.uniform(-3, 3, (FILTERS, MODES))
    poles = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)[:, :, None]
    return {
        f"{path}poles": torch.from_numpy(poles),
        f"{path}residues": torch.from_numpy(rng.normal(size=(FILTERS, MODES, 1, 2))),
        f"{path}D": torch.from_numpy(rng.normal(size=3 * FILTERS)),
        f"{path}short_filter_weight": torch.from_numpy(rng.normal(size=(9 * FILTERS, 1, 3))),
    }


def evo2(path: str = "blocks.0.filter.") -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    return {
        f"{path}log_poles": torch.from_numpy(-np.exp(rng.uniform(-7, -1, (FILTERS, MODES, 1)))),
        f"{path}residues": torch.from_numpy(rng.normal(size=(FILTERS, MODES))),
        f"{path}D": torch.from_numpy(rng.normal(size=3 * FILTERS)),
        f"{path}short_filter_weight": torch.from_numpy(rng.normal(size=(9 * FILTERS, 1, 3))),
    }


def generated(poles: np.ndarray, residues: np.ndarray) -> torch.Tensor:
    """Return the response to an impulse, (1, filter, lag): state ← pole · state + x, y = Re Σ residue · state."""
    state, rows = np.zeros(poles.shape, dtype=complex), []
    for t in range(LAGS):
        state = poles * state + (1.0 if t == 0 else 0.0)
        rows.append((residues * state).sum(1).real)
    return torch.from_numpy(np.stack(rows, -1))[None]


def test_the_filter_of_evo_is_what_its_recurrence_generates(read_model: Read) -> None:
    state = evo1()
    (found,) = read_model(state)
    poles, residues = (
        state[f"backbone.blocks.0.filter.{name}"].numpy()[:, :, 0] @ np.array([1, 1j]) for name in ("poles", "residues")
    )
    assert relative_error(stepped_kernel(found, LAGS), generated(poles, residues)) < 1e-13
    np.testing.assert_allclose(found.rate.numpy(), -np.log(np.abs(poles)), rtol=1e-13)
    assert (found.family, found.spelling, found.time_invariant) == ("stripedhyena", "StripedHyena, Evo", True)


def test_the_filter_of_evo_2_is_what_its_recurrence_generates(read_model: Read) -> None:
    state = evo2()
    (found,) = read_model(state)
    poles = np.exp(state["blocks.0.filter.log_poles"].numpy()[..., 0])
    residues = state["blocks.0.filter.residues"].numpy()
    assert relative_error(stepped_kernel(found, LAGS), generated(poles, residues)) < 1e-13
    assert torch.equal(found.rate, -state["blocks.0.filter.log_poles"][..., 0])


@pytest.mark.parametrize("weights", [evo1, evo2])
def test_the_slowest_mode_of_a_hybrid_is_reported(
    weights: Callable[[], dict[str, torch.Tensor]], write_model: Callable[..., Path]
) -> None:
    state = {name: values.float() for name, values in weights().items()}
    state["blocks.1.inner_mha_cls.Wqkv.weight"] = torch.randn(12, 4)
    result = diagnose(write_model(state))
    assert result.problems == ()
    (layer,) = result.layers
    if weights is evo1:
        rate = -np.log(np.hypot(*np.moveaxis(state["backbone.blocks.0.filter.poles"].double().numpy(), -1, 0)))
    else:
        rate = -state["blocks.0.filter.log_poles"].double().numpy()
    assert layer.half_life is not None
    assert math.isclose(layer.half_life.max, math.log(2) / rate.min(), rel_tol=1e-12)


def test_a_growing_pole_of_evo_2_is_found(write_model: Callable[..., Path]) -> None:
    state = evo2()
    state["blocks.0.filter.log_poles"][2, 1] = 0.01
    assert diagnose(write_model(state)).layers[0].unstable == 1
