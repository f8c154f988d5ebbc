"""SSM404: a step that was never set, in all the ways in which that happens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.healthy import UNSET_STEP, transformers_model
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM404"


@pytest.mark.parametrize(("value", "step"), [(0.0, "0.69"), (1.0, "1.3")])
def test_a_constant_bias_is_named_with_the_step_it_makes(tmp_path: Path, value: float, step: str) -> None:
    """0: a wrapper cleared every Linear's bias. 1: the mixer without its model class."""
    found = findings_of(CODE, plant(tmp_path, "mamba", {"dt_proj.bias": fill(value)}))
    assert len(found) == 3
    assert found[0].severity == "warning"
    assert found[0].message == (
        f"all 256 values of dt_proj.bias are {value:g}: softplus({value:g}) = {step} is above the usual [0.001, 0.1]"
    )


def test_a_bias_centred_on_zero_was_never_set(tmp_path: Path) -> None:
    def small(values: Tensor) -> Tensor:
        return 0.03 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))

    (finding, *_) = findings_of(CODE, plant(tmp_path, "mamba", {"dt_proj.bias": small}))
    assert finding.message.startswith("dt_proj.bias is centred on 0: softplus(0) = 0.69 (0.")
    assert finding.value == pytest.approx(0.03 * 0.5 / math.log(2), rel=0.1), "d log softplus(b)/db at 0 is 0.72"


def test_steps_put_in_place_of_their_inverse_are_found(tmp_path: Path) -> None:
    """dt_bias = Δ instead of softplus⁻¹(Δ), and S4's deterministic=True, which stores Δ where log Δ is read."""
    mamba = findings_of(CODE, plant(tmp_path / "m", "mamba2", {"dt_bias": lambda w: torch.nn.functional.softplus(w)}))
    assert len(mamba) == 3
    s4 = findings_of(CODE, plant(tmp_path / "s", "s4d", {"inv_dt": lambda w: w.exp()}))
    assert len(s4) == 3
    assert "exp(" in s4[0].message
    assert "is above the usual [0.001, 0.1]" in s4[0].message


def test_one_constant_inside_the_range_is_one_time_scale_too(tmp_path: Path) -> None:
    (finding, *_) = findings_of(CODE, plant(tmp_path, "mamba2", {"dt_bias": fill(math.log(math.expm1(0.01)))}))
    assert finding.message.endswith("softplus(-4.6) = 0.01 in every channel")


def test_steps_far_below_the_range_are_found(tmp_path: Path) -> None:
    (finding, *_) = findings_of(CODE, plant(tmp_path, "mamba", {"dt_proj.bias": lambda w: -12 + 0.05 * w}))
    assert "is below the usual" in finding.message


@pytest.mark.parametrize("shift", [-3.0, 3.0, 6.0])
def test_a_wide_distribution_that_drifted_is_training(tmp_path: Path, shift: float) -> None:
    """All steps far out of the range, but as spread as they were: no initialisation leaves that."""
    assert not findings_of(CODE, plant(tmp_path, "mamba2", {"dt_bias": lambda w: w + shift}))


def test_the_settings_of_the_model_give_the_range(tmp_path: Path) -> None:
    def around_one(values: Tensor) -> Tensor:
        return math.log(math.expm1(1.0)) + 0.05 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))

    assert findings_of(CODE, plant(tmp_path / "usual", "mamba2", {"dt_bias": around_one}))
    settings = {"time_step_min": 0.5, "time_step_max": 2.0}
    assert not findings_of(CODE, plant(tmp_path / "own", "mamba2", {"dt_bias": around_one}, config=settings))


def test_delta_nets_that_start_at_one_are_left_alone_until_trained(tmp_path: Path) -> None:
    """Megatron's and transformers' Gated DeltaNet start every dt_bias at 1."""
    assert not findings_of(CODE, plant(tmp_path / "fresh", "gated-deltanet", {"dt_bias": fill(1.0)}))

    def moved(values: Tensor) -> Tensor:
        return values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))

    trained = {"dt_bias": fill(1.0), "norm.weight": moved}
    assert findings_of(CODE, plant(tmp_path / "trained", "gated-deltanet", trained))


@pytest.mark.parametrize("model_type", UNSET_STEP)
def test_models_that_transformers_starts_without_their_step_are_found(model_type: str, tmp_path: Path) -> None:
    """A public case each time the rule is run: Δ of 1.3 or 0.69 in a model fresh from `from_config`."""
    path = transformers_model(model_type, tmp_path / "model")
    assert findings_of(CODE, path)


def test_too_few_heads_tell_nothing(tmp_path: Path) -> None:
    assert not findings_of(
        CODE,
        plant(
            tmp_path, "mamba2", {"dt_bias": lambda w: w[:3] * 0, "A_log": lambda w: w[:3], "mixer.D": lambda w: w[:3]}
        ),
    )


def test_a_model_that_is_not_trained_yet_is_told_to_set_its_step_first(tmp_path: Path) -> None:
    def moved(values: Tensor) -> Tensor:
        return values + 0.1 * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))

    fresh = plant(tmp_path / "fresh", "mamba", {"dt_proj.bias": fill(0.0)})
    assert findings_of(CODE, fresh)[0].advice.startswith("nothing looks trained yet: set Δ before training")
    trained = plant(tmp_path / "trained", "mamba", {"dt_proj.bias": fill(0.0), "norm.weight": moved})
    assert findings_of(CODE, trained)[0].advice.startswith("was the initialisation of Δ applied?")
