"""SSM405: A_log that went through the logarithm a second time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmdiag import diagnose
from tests.rules.healthy import initial_state, save, trained_state
from tests.rules.planting import findings_of, plant

CODE = "SSM405"


def logged(name: str, directory: Path, *, trained: bool) -> Path:
    """Write a model whose A_log was replaced by its logarithm after loading."""
    state = trained_state(name) if trained else initial_state(name)
    return save(directory / name, {k: v.log() if "A_log" in k or "A_b_log" in k else v for k, v in state.items()}, {})


@pytest.mark.one_in(3)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", ["mamba", "vim", "zamba", "vmamba", "hymba"])
def test_modes_at_log_log_n_are_found(name: str, trained: bool, tmp_path: Path) -> None:
    found = findings_of(CODE, logged(name, tmp_path, trained=trained))
    assert len(found) == (6 if name == "vim" else 3)
    assert found[0].severity == "error"
    said = (
        r"A(_b)?_logs?(\.0)? is the logarithm of an A_log: modes lie at log log n \((0.9|1.0)\d for mode 16, not 2.77\)"
    )
    assert re.match(said, found[0].message)


def test_nan_is_counted_beside_the_explanation(tmp_path: Path) -> None:
    path = logged("mamba", tmp_path, trained=False)
    (finding, *_) = findings_of(CODE, path)
    assert "256 of 4,096 are NaN or −∞" in finding.message, "log 1 = 0 in every channel, and log 0 = −∞"
    assert {"SSM401", "SSM405"} <= {found.code for found in diagnose(path, memory=False).findings}


@pytest.mark.parametrize("trained", [False, True])
def test_heads_with_a_below_one_turn_to_nan(trained: bool, tmp_path: Path) -> None:
    """fla's DeltaNets draw A from [0, 16]: one head in sixteen has a negative logarithm."""
    found = findings_of(CODE, logged("gated-deltanet", tmp_path, trained=trained))
    assert len(found) == 3
    assert "are NaN or −∞ and none is above 1." in found[0].message


@pytest.mark.parametrize("name", ["mamba2", "kda"])
def test_heads_without_nan_are_told_by_their_distribution(name: str, tmp_path: Path) -> None:
    found = findings_of(CODE, logged(name, tmp_path, trained=False))
    assert len(found) == 3
    assert "exp(exp(w)) is uniform in [1, 16] (p = 0." in found[0].message


def rates(directory: Path, log_rates: Tensor) -> Path:
    """Write a trained Mamba-2 with these A_log, (layer, head)."""
    g = torch.Generator().manual_seed(1)
    state = {}
    for layer, row in enumerate(log_rates):
        path = f"backbone.layers.{layer}"
        state |= {
            f"{path}.mixer.A_log": row.float(),
            f"{path}.mixer.dt_bias": torch.randn(len(row), generator=g) - 4,
            f"{path}.mixer.D": 1 + 0.1 * torch.randn(len(row), generator=g),
            f"{path}.norm.weight": 1 + 0.1 * torch.randn(64, generator=g),
        }
    return save(directory, state, {})


@pytest.mark.one_in(7)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("moved", [0.05, 0.2])
def test_a_trained_mamba_2_without_nan_is_warned_of(moved: float, seed: int, tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(seed)
    A = (1.5 + 14.5 * torch.rand(24, 64, generator=g)) * (moved * torch.randn(24, 64, generator=g)).exp()
    found = findings_of(CODE, rates(tmp_path / "twice", A.clamp(min=1.01).log().log()))
    assert len(found) == 24
    assert {finding.severity for finding in found} == {"warning"}
    assert not findings_of(CODE, rates(tmp_path / "once", A.log()))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("highest", [2.0, 2.5, 3.0, 4.0])
def test_a_start_at_small_rates_is_no_second_logarithm(highest: float, tmp_path: Path) -> None:
    """`A_init_range` of Mamba-2's code, at other values than its own."""
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        for lowest in (0.5, 1.0):
            A = (lowest + (highest - lowest) * torch.rand(24, 64, generator=g)) * (0.1 * torch.randn(24, 64)).exp()
            assert not findings_of(CODE, rates(tmp_path / f"{seed}{lowest}", A.log()))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["mamba", "mamba2", "gated-deltanet", "kda", "plamo2", "zamba"])
def test_the_logarithm_itself_is_as_it_should_be(name: str, tmp_path: Path) -> None:
    assert not findings_of(CODE, save(tmp_path / "fresh", initial_state(name), {}))
    assert not findings_of(CODE, save(tmp_path / "trained", trained_state(name), {}))


def test_rates_that_decayed_towards_one_are_not_logged(tmp_path: Path) -> None:
    """Weight decay pulls every A_log to 0: small like a second logarithm, but ordered and spread otherwise."""
    for factor in (0.5, 0.3, 0.1, 0.01):
        for name in ("mamba", "mamba2", "gated-deltanet"):
            path = plant(tmp_path / f"{name}{factor}", name, {"A_log": lambda w, factor=factor: factor * w})
            assert not findings_of(CODE, path), (name, factor)


def test_one_nan_in_a_healthy_model_is_no_logarithm(tmp_path: Path) -> None:
    def broken(values: Tensor) -> Tensor:
        values[5] = torch.nan
        return values

    for name in ("mamba", "mamba2"):
        assert not findings_of(CODE, plant(tmp_path / name, name, {"0.mixer.A_log": broken}))
