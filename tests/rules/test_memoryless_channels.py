"""SSM203: layers of channels that forget within a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.healthy import save
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM203"


def test_steps_of_one_in_place_of_a_hundredth_leave_no_memory(tmp_path: Path) -> None:
    """S4D's rate is Δ/2: at Δ between 2 and 20 half is gone within a step in every channel."""
    found = findings_of(CODE, plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w + math.log(2000)}))
    assert len(found) == 3
    assert found[0].severity == "warning"
    assert found[0].message == "64 of 64 channels lose more than half of their state in one step: they hold no memory"


@pytest.mark.parametrize(("count", "reported"), [(47, False), (48, True)])
def test_three_quarters_of_the_channels_have_to_be_fast(tmp_path: Path, count: int, reported: bool) -> None:
    path = plant(tmp_path, "s4d-minimal", {"kernel.log_dt": fill(math.log(2.0), slice(0, count))})
    assert bool(findings_of(CODE, path)) is reported


def test_one_slow_mode_is_a_memory(tmp_path: Path) -> None:
    path = plant(tmp_path / "all", "s4d-minimal", {"kernel.log_A_real": fill(math.log(5000))})
    assert findings_of(CODE, path)
    slow = {"kernel.log_A_real": lambda w: torch.cat([0 * w[:, 1:] + math.log(5000), 0 * w[:, :1]], 1)}
    assert not findings_of(CODE, plant(tmp_path / "one", "s4d-minimal", slow))


def test_a_shared_state_counts_its_modes(tmp_path: Path) -> None:
    def fifty_fast(values: Tensor) -> Tensor:
        return torch.where(torch.arange(64) < 50, 0.5, -3.0)

    (finding, *_) = findings_of(CODE, plant(tmp_path, "lru", {"nu_log": fifty_fast}))
    assert finding.message.startswith("50 of 64 modes lose")


def test_a_selective_layer_is_a_note_at_its_bias(tmp_path: Path) -> None:
    (finding, *_) = findings_of(CODE, plant(tmp_path, "mamba2", {"dt_bias": fill(1.0), "A_log": fill(1.0)}))
    assert finding.severity == "note"
    assert "in one step, gates at rest: they" in finding.message


def test_a_gate_of_exactly_one_half_is_not_past_it(tmp_path: Path) -> None:
    for name in ("hgrn", "min-gru"):
        assert not findings_of(CODE, plant(tmp_path / name, name))


def test_half_of_rwkv_4_is_fast_by_design(tmp_path: Path) -> None:
    assert not findings_of(CODE, plant(tmp_path, "rwkv4", {"time_decay": lambda w: w + 2}))


@pytest.mark.parametrize(
    ("taps", "says"),
    [
        (
            lambda w: w.zero_(),
            "8 of 8 channels have a convolution that is 0 at every tap: nothing reaches",
        ),
        (lambda w: w[:6, :, :2].zero_(), "6 of 8 channels have a convolution that is 0 at every tap past the first"),
        (lambda w: w[:5, :, :2].zero_(), ""),
        (lambda w: w[:, :, 0].zero_(), ""),
        (lambda w: w[:, :, 0].fill_(torch.nan), ""),
    ],
)
def test_a_convolution_that_is_zero_where_the_past_comes_in_holds_none(
    taps: Callable[[Tensor], object], says: str, tmp_path: Path
) -> None:
    """As where a converter left out the weight of a layer of LFM2; its last weight meets the present input."""
    weight = torch.rand(8, 1, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    taps(weight)
    projections = {"in_proj.weight": torch.ones(24, 8), "out_proj.weight": torch.ones(8, 8)}
    state = {f"model.layers.0.conv.{name}": w for name, w in {"conv.weight": weight, **projections}.items()}
    found = findings_of(CODE, save(tmp_path / "m", state, {"model_type": "lfm2"}))
    assert [finding.severity for finding in found] == ["warning"] * bool(says)
    assert all(finding.message.startswith(says) for finding in found)
