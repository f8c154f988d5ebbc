"""SSM204: exponential forgetting with a context of many half-lives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from ssmdiag import diagnose
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.planting import fill, plant

CODE = "SSM204"


def findings(path: Path, **options: Any) -> list[Finding]:
    return list(diagnose(path, rules=select_rules(select=[CODE]), most_channels=32, **options, tails=False).findings)


def one_rate(directory: Path, half_life: float, context: int) -> Path:
    """RWKV-5 with a single rate: e^{−rt} in every channel."""
    rate = math.log(math.log(2) / half_life)
    return plant(directory, "rwkv5", {"time_decay": fill(rate)}, config={"ctx_len": context})


def test_a_context_of_hundreds_of_half_lives_is_noted(tmp_path: Path) -> None:
    found = findings(one_rate(tmp_path, half_life=10, context=4096))
    assert len(found) == 3
    assert found[0].severity == "note"
    assert found[0].value == pytest.approx(409.6, rel=1e-6)
    assert "the context of 4,096 is 410 half-lives of its slowest mode (10 steps)" in found[0].message


@pytest.mark.parametrize(("half_lives", "reported"), [(23.5, False), (24.5, True)])
def test_twenty_four_half_lives_are_float32s_last_bit(tmp_path: Path, half_lives: float, reported: bool) -> None:
    assert bool(findings(one_rate(tmp_path, half_life=4096 / half_lives, context=4096))) is reported


@pytest.mark.slow
@pytest.mark.parametrize(("context", "reported"), [(20_000, False), (100_000, True)])
def test_a_layer_of_many_rates_is_noted_once_all_have_sunk(context: int, reported: bool, tmp_path: Path) -> None:
    """Steps spread over two decades: no single law, and the slowest half-life is 1,276 steps."""
    path = plant(tmp_path, "s4d-minimal", config={"l_max": context})
    laws = {
        layer.decay.whole.law.value for layer in diagnose(path, most_channels=32, tails=False).layers if layer.decay
    }
    assert "exponential" not in laws
    found = findings(path)
    assert bool(found) is reported
    assert all("forgets exponentially in the end" in finding.message for finding in found)


def test_two_rates_in_turn_are_noted(tmp_path: Path) -> None:
    def two(values: Tensor) -> Tensor:
        values[...] = math.log(math.log(2) / 10)
        values.flatten()[::2] = math.log(math.log(2) / 60)
        return values

    path = plant(tmp_path, "rwkv5", {"time_decay": two}, config={"ctx_len": 3600})
    found = findings(path)
    assert len(found) == 3
    assert "the context of 3,600 is 60 half-lives of its slowest mode (60 steps)" in found[0].message


def test_selective_layers_and_unknown_contexts_are_left_alone(tmp_path: Path) -> None:
    assert not findings(plant(tmp_path / "m", "mamba2", {"dt_bias": fill(0.0)}, config={"seq_len": 10**5}))
    path = one_rate(tmp_path / "r", half_life=10, context=4096)
    (path / "config.json").write_text("{}")
    assert not findings(path)
