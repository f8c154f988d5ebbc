"""SSM202: a layer whose every kernel is flat over the context."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM202"


def findings(path: Path, **options: Any) -> list[Finding]:
    return list(diagnose(path, rules=select_rules(select=[CODE]), most_channels=32, **options, tails=False).findings)


def test_a_layer_whose_rates_fell_to_nothing_is_found(tmp_path: Path) -> None:
    (finding,) = findings(plant(tmp_path, "s4d-real", {"1.layer.layer.kernel.A_real": lambda w: w - 20}))
    assert (finding.severity, finding.layer) == ("warning", "model.layers.1.layer.layer.kernel")
    assert (finding.count, finding.of) == (64, 64)
    assert "no channel forgets within the context of 1,024" in finding.message


@pytest.mark.slow
def test_the_value_is_the_power_of_the_stepped_kernel(tmp_path: Path) -> None:
    """RWKV-5: one rate per key; the retention of its slowest-kept head, stepped in float64."""
    context = 4096
    path = plant(tmp_path, "rwkv5", {"time_decay": lambda w: 0.1 * w - 12.0}, config={"ctx_len": context})
    found = {finding.layer: finding.value for finding in findings(path)}
    from safetensors.torch import load_file

    state = load_file(path / "model.safetensors")
    assert len(found) == 3
    for layer, value in found.items():
        rate = state[f"{layer}.time_decay"].double().exp()  # (head, key)
        kernel = torch.stack([(-rate * t).exp().mean(1) for t in range(context)])
        power = kernel.square()
        ratio = (power[context // 2 :].mean(0) / power.mean(0)).min()
        assert value == pytest.approx(float(ratio), rel=1e-3), "lags are binned, four to the octave"


@pytest.mark.parametrize(("spent", "reported"), [(0.095, True), (0.105, False)])
def test_the_threshold_is_a_tenth_of_a_neper_over_the_context(tmp_path: Path, spent: float, reported: bool) -> None:
    """e^{−rT} with rT = 0.1 is where late power is 0.95 of the mean, with and without kernels."""
    rate = math.log(spent / 4096)
    path = plant(tmp_path, "rwkv5", {"time_decay": fill(rate)}, config={"ctx_len": 4096})
    assert bool(findings(path)) is reported
    assert bool(findings_of(CODE, path)) is reported


def test_one_channel_that_forgets_is_enough_for_silence(tmp_path: Path) -> None:
    def all_but_one(values: torch.Tensor) -> torch.Tensor:
        values[1:] -= 20
        return values

    path = plant(tmp_path, "s4d-real", {"A_real": all_but_one})
    assert not findings(path), "horizons are looked for in 32 of 64 channels, the fastest always among them"


def test_a_selective_layer_is_a_note_unless_its_a_allows_no_forgetting(tmp_path: Path) -> None:
    shut = findings(plant(tmp_path / "shut", "mamba", {"0.mixer.dt_proj.bias": fill(-25.0)}))
    assert [finding.severity for finding in shut] == ["note"]
    assert "with the gates at their bias" in shut[0].message
    dead = findings(plant(tmp_path / "dead", "mamba", {"0.mixer.A_log": fill(-20.0)}))
    assert [finding.severity for finding in dead] == ["warning"]
    assert "even at Δ = 1" in dead[0].message
    # With Δ = 1 at all 2,048 steps, the state keeps this share:
    assert math.exp(-math.exp(-20) * 2048) > 0.999


@pytest.mark.slow
def test_decays_that_nobody_trains_are_design(tmp_path: Path) -> None:
    """MiniMax's last layer forgets over 10⁵ steps, RetNet's last heads over thousands."""
    assert not findings(plant(tmp_path / "minimax", "minimax"), context_length=16)
    assert not findings(plant(tmp_path / "retnet", "retnet"), context_length=8)


def test_an_oscillator_without_friction_is_design(tmp_path: Path) -> None:
    slow = {"A_diag": fill(1e-12)}
    assert findings_of(CODE, plant(tmp_path / "im", "linoss", slow, config={"l_max": 512}))
    imex = {"discretization": "imex", "l_max": 512}
    assert not findings_of(CODE, plant(tmp_path / "imex", "linoss", slow, config=imex))


def test_without_a_context_there_is_nothing_to_outlast(tmp_path: Path) -> None:
    assert not findings(plant(tmp_path, "s4d-real", {"A_real": lambda w: w - 20}, config={}))
