"""SSM201: all layers together reach a small part of the context."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.rules.finding import Finding
from ssmdiag.rules.selection import select_rules
from tests.rules.healthy import initial_state, save
from tests.rules.planting import findings_of, plant

CODE = "SSM201"


def findings(path: Path, **options: Any) -> list[Finding]:
    """Return what the rule finds where horizons are looked for, as `check` and `inspect` do."""
    return list(diagnose(path, rules=select_rules(select=[CODE]), most_channels=32, **options, tails=False).findings)


def test_rates_a_hundred_times_too_fast_for_the_context_are_found(tmp_path: Path) -> None:
    path = plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w + math.log(100)}, config={"l_max": 16_384})
    report = diagnose(path, rules=select_rules(select=[CODE]), most_channels=32, tails=False)
    (finding,) = report.findings
    assert (finding.severity, finding.layer, finding.threshold) == ("warning", None, 0.1)
    horizons = [layer.horizon.max for layer in report.layers if layer.horizon]
    assert finding.value == pytest.approx(sum(horizons) / 16_384, rel=1e-12)
    assert f"no layer reaches beyond {max(horizons):,.0f}" in finding.message


def test_without_horizons_the_slowest_mode_stands_for_them(tmp_path: Path) -> None:
    """One real mode per channel: K_t = c λᵗ has spent 99 % of its energy after ln(100)/2r steps."""
    path = plant(tmp_path, "rwkv5", {"time_decay": lambda w: 0 * w}, config={"ctx_len": 4096})
    (quick,) = findings_of(CODE, path)
    assert quick.value == pytest.approx(3 * math.log(100) / 2 / 4096, rel=1e-12)
    (exact,) = findings(path)
    assert exact.value == pytest.approx(3 * math.ceil(math.log(100) / 2) / 4096, rel=1e-12)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("context", "reported"), [(1024, False), (200_000, True)])
def test_the_same_layers_suit_a_shorter_context(tmp_path: Path, context: int, reported: bool) -> None:
    assert bool(findings(plant(tmp_path, "s4d-minimal", config={}), context_length=context)) is reported


@pytest.mark.slow
def test_without_a_context_nothing_is_far(tmp_path: Path) -> None:
    assert not findings(plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w + 3}, config={}))


def test_a_selective_model_is_a_note_that_says_at_which_point(tmp_path: Path) -> None:
    (finding,) = findings(plant(tmp_path, "mamba", config={"max_position_embeddings": 1_000_000}))
    assert finding.severity == "note"
    assert "with their gates at rest" in finding.message
    assert "distant fact" in finding.advice


@pytest.mark.one_in(3)
@pytest.mark.parametrize("query", ["layers.7.self_attn.q_proj.weight", "h.3.attn.c_attn.weight", "blk.2.qkv.weight"])
def test_attention_carries_what_the_recurrence_forgets(query: str, tmp_path: Path) -> None:
    state = initial_state("s4d-minimal") | {f"model.{query}": torch.zeros(8, 8)}
    assert not findings(save(tmp_path / "hybrid", state, {"l_max": 10**6}))


def test_queries_of_a_linear_attention_are_the_recurrences_own(tmp_path: Path) -> None:
    assert findings(plant(tmp_path, "gated-deltanet", config={"max_position_embeddings": 10**6}))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["hgrn", "min-gru", "mega", "megalodon"])
def test_gates_without_a_bias_and_averages_before_attention_say_nothing(name: str, tmp_path: Path) -> None:
    assert not findings(plant(tmp_path, name, config={"l_max": 10**6, "max_position_embeddings": 10**6}))


def test_one_layer_that_never_forgets_reaches_everything(tmp_path: Path) -> None:
    state = initial_state("s4d-minimal")
    state["s4_layers.1.kernel.log_A_real"].fill_(-800.0)  # a rate of e^−800: zero
    assert not findings_of(CODE, save(tmp_path / "m", state, {"l_max": 10**6}))
    assert findings_of(CODE, save(tmp_path / "others", initial_state("s4d-minimal"), {"l_max": 10**6}))
