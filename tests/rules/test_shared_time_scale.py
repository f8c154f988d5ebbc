"""SSM205: channels whose modes are copies of one time scale, and the many that only look alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.planting import findings_of, plant

CODE = "SSM205"


def nearly_equal(spread: float, centre: float = 0.0) -> object:
    """Return a change to A_log whose rates have that σ/mean in every channel."""

    def change(values: Tensor) -> Tensor:
        g = torch.Generator().manual_seed(0)
        noise = torch.randn(values.shape, generator=g, dtype=torch.float64)
        noise = (noise - noise.mean(-1, keepdim=True)) / noise.std(-1, correction=0, keepdim=True)
        return (centre + (1 + spread * noise).log()).float()

    return change


def test_sixteen_modes_within_a_few_percent_are_one(tmp_path: Path) -> None:
    """As in the Mamba that typeseg ships: A_log near 0 instead of log 1 … log 16."""
    found = findings_of(CODE, plant(tmp_path, "mamba", {"A_log": nearly_equal(0.024)}))
    assert len(found) == 3
    for finding in found:
        assert finding.severity == "warning"
        assert finding.value == pytest.approx(0.024, rel=1e-4)
        assert (finding.count, finding.of, finding.threshold) == (256, 256, 0.1)
        assert finding.message == "the 16 modes of a channel share one time scale (spread 2.4 %, 10 % asked)"


@pytest.mark.parametrize(("spread", "reported"), [(0.095, True), (0.105, False)])
def test_the_threshold_is_the_standard_deviation_over_the_mean(tmp_path: Path, spread: float, reported: bool) -> None:
    assert bool(findings_of(CODE, plant(tmp_path, "mamba", {"A_log": nearly_equal(spread)}))) is reported


def test_the_step_has_no_say(tmp_path: Path) -> None:
    """Δ is one number a channel: it moves all of its modes alike."""
    slow = {"A_log": nearly_equal(0.02, centre=2.0), "dt_proj.bias": lambda w: w - 4}
    assert len(findings_of(CODE, plant(tmp_path, "mamba", slow))) == 3


def test_half_of_the_channels_are_enough_and_fewer_are_not(tmp_path: Path) -> None:
    def first(share: float) -> object:
        def change(values: Tensor) -> Tensor:
            values[: round(share * len(values))] = 0.0
            return values

        return change

    found = findings_of(CODE, plant(tmp_path / "many", "mamba", {"A_log": first(0.6)}))
    assert "in 154 of 256 channels" in found[0].message
    assert not findings_of(CODE, plant(tmp_path / "few", "mamba", {"A_log": first(0.4)}))


def test_modes_of_one_rate_and_many_frequencies_are_a_basis(tmp_path: Path) -> None:
    """S4D starts with Re A = −1/2 in every mode."""
    assert not findings_of(CODE, plant(tmp_path / "fresh", "s4d-minimal"))
    (finding, *_) = findings_of(CODE, plant(tmp_path / "flat", "s4d-minimal", {"A_imag": lambda w: 0 * w + 3.0}))
    assert "share one time scale and frequency" in finding.message


def test_a_state_that_all_inputs_share_is_one_channel(tmp_path: Path) -> None:
    ring = {"nu_log": lambda w: 0 * w - 3, "theta_log": lambda w: 0 * w}
    (finding, *_) = findings_of(CODE, plant(tmp_path, "lru", ring))
    assert finding.message.startswith("the 64 modes of the layer share one time scale and frequency")


@pytest.mark.parametrize("name", ["mamba2", "gated-deltanet", "mamba3", "mlstm"])
def test_heads_with_one_mode_are_exempt(name: str, tmp_path: Path) -> None:
    assert not findings_of(CODE, plant(tmp_path, name))


@pytest.mark.parametrize("name", ["rwkv5", "rwkv6", "rwkv7", "gla", "hgrn"])
def test_keys_of_a_matrix_memory_are_no_modes(name: str, tmp_path: Path) -> None:
    """Their decays within a head lie close together from the start; what is written tells them apart."""
    assert not findings_of(CODE, plant(tmp_path, name))


def test_broken_channels_do_not_count(tmp_path: Path) -> None:
    def broken(values: Tensor) -> Tensor:
        values = torch.zeros_like(values)
        values[3, 5] = torch.nan
        return values

    assert findings_of(CODE, plant(tmp_path, "mamba", {"A_log": broken}))[0].count == 255
