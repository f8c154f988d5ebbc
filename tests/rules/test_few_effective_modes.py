"""SSM206: modes drawn together are worth fewer; the families' own starts are not reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.rules.few_effective_modes import _effective_at_start
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.planting import fill, plant

CODE = "SSM206"


def found(path: Path, **thresholds: float) -> list[Finding]:
    rules = select_rules(select=[CODE], thresholds={CODE: thresholds} if thresholds else None)
    return list(diagnose(path, rules=rules, most_channels=16, tails=False).findings)


def drawn_together(values: torch.Tensor) -> torch.Tensor:
    return values.mean(-1, keepdim=True) + 0.02 * (values - values.mean(-1, keepdim=True))


def test_modes_that_training_drew_together_are_worth_a_few(tmp_path: Path) -> None:
    findings = found(plant(tmp_path, "mamba", {"A_log": drawn_together}))
    assert len(findings) == 3
    for finding in findings:
        assert finding.severity == "warning"
        assert finding.value is not None
        assert finding.value < 0.5
        assert "of 16 modes survive rounding the state to float32" in finding.message


def test_equal_modes_are_one_and_are_counted_as_one(tmp_path: Path) -> None:
    finding = found(plant(tmp_path, "mamba", {"A_log": fill(0.5)}))[0]
    assert "1 of 1 modes survive" in finding.message


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["mamba", "s4d"])
def test_a_fresh_model_is_not_reported(tmp_path: Path, name: str) -> None:
    assert not found(plant(tmp_path, name))


def test_the_threshold_can_be_set(tmp_path: Path) -> None:
    assert found(plant(tmp_path, "mamba"), share=2.0)


@pytest.mark.slow
def test_a_start_that_no_layer_falls_short_of_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 modes it takes minutes."""
    monkeypatch.setattr("ssmdiag.rules.few_effective_modes._effective_at_start", None)
    assert not found(plant(tmp_path, "s4d"))


@pytest.mark.parametrize("family", ["s5", "lru", "s4d"])
def test_a_start_is_known_by_its_middle_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    every = _effective_at_start.__wrapped__(family, 32, "bf16")
    monkeypatch.setattr("ssmdiag.rules.few_effective_modes.MANY", 8)
    middle = _effective_at_start.__wrapped__(family, 32, "bf16")
    assert every is not None
    assert middle == pytest.approx(every, rel=0.05)
