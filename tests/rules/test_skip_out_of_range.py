"""SSM407: D that was never written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.healthy import initial_state, save, trained_state
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM407"


def test_memory_that_was_never_written_is_found(tmp_path: Path) -> None:
    """As after an online reload that drops mixer.D: NaN, infinity and finite values around 1e17."""

    def garbage(values: Tensor) -> Tensor:
        values[3], values[4], values[5], values[9] = 1e17, -3e16, torch.nan, torch.inf
        return values

    (finding,) = findings_of(CODE, plant(tmp_path, "mamba2", {"1.mixer.D": garbage}))
    assert (finding.severity, finding.layer, finding.count, finding.of) == ("error", "model.layers.1.mixer", 2, 32)
    assert finding.value == pytest.approx(1e17)
    assert "2 of 32 values of D are beyond 10000, the largest is 1e+17" in finding.message


@pytest.mark.parametrize(("largest", "reported"), [(9_000.0, False), (11_000.0, True)])
def test_the_largest_plausible_value_can_be_set(tmp_path: Path, largest: float, reported: bool) -> None:
    path = plant(tmp_path, "mamba", {"mixer.D": fill(largest, 7)})
    assert bool(findings_of(CODE, path)) is reported
    assert findings_of(CODE, path, thresholds={"largest": 1e3})


def test_zeros_in_a_trained_model_were_dropped(tmp_path: Path) -> None:
    state = trained_state("mamba2")
    state["model.layers.0.mixer.D"].zero_()
    (finding,) = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert finding.severity == "warning"
    assert finding.message.startswith("all 32 values of D are 0, though model.layers.0.mixer.norm.weight is no longer")


def test_zeros_in_a_fresh_model_and_one_zero_in_a_trained_are_a_choice(tmp_path: Path) -> None:
    assert not findings_of(CODE, plant(tmp_path, "mamba2", {"mixer.D": fill(0.0)}))
    state = trained_state("mamba2")
    state["model.layers.0.mixer.D"][1:] = 0
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("name", "skip"),
    [
        ("s4", "model.layers.1.layer.layer.D"),
        ("s4-v3", "model.layers.1.layer.D"),
        ("h3", "backbone.layers.1.mixer.D"),
        ("h3", "backbone.layers.1.mixer.ssm_k_D"),
        ("mega", "encoder.layers.1.mega_layer.move.omega"),
        ("vmamba", "model.layers.1.mixer.Ds"),
        ("hymba", "model.layers.1.mamba.D.0"),
        ("vim", "model.layers.1.mixer.D_b"),
        ("lru", "params.encoder.layers_1.seq.D"),
    ],
)
def test_the_skip_is_found_under_each_familys_name_for_it(name: str, skip: str, tmp_path: Path) -> None:
    state = initial_state(name) | {skip: torch.full((64,), 1e17)}
    (finding,) = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert finding.tensor == skip
