"""SSM207: memory spent on lags no sequence has."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssmdiag import diagnose
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.planting import plant

CODE = "SSM207"
EXAMPLE = Path(__file__).parents[2] / "examples" / "s4d-digits" / "step-00000.safetensors"


def found(path: Path, context: int | None) -> list[Finding]:
    return list(
        diagnose(
            path, rules=select_rules(select=[CODE]), context_length=context, most_channels=32, tails=False
        ).findings
    )


def test_time_constants_of_thousands_on_sixty_four_steps_are_reported_as_a_note() -> None:
    findings = found(EXAMPLE, 64)
    assert findings
    for finding in findings:
        assert finding.severity == "note"
        assert finding.value is not None
        assert finding.value < 0.5
        assert "within the context of 64" in finding.message


@pytest.mark.slow
def test_the_same_model_on_long_sequences_is_not() -> None:
    assert not found(EXAMPLE, 100_000)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("context", [None, 4096])
def test_a_fresh_mamba_is_not_reported(tmp_path: Path, context: int | None) -> None:
    assert not found(plant(tmp_path, "mamba"), context)


def test_a_context_shorter_than_the_modes_is_held_against_what_it_can_hold(tmp_path: Path) -> None:
    """Eight lags hold eight units of memory at most: half of all sixteen is all there is to want."""
    assert not found(plant(tmp_path, "mamba", {"dt_proj.bias": lambda w: w + 4}), 8)
