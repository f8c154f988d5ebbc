"""SSM102: what never decays, what outlasts the context, and what is made so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.rules.planting import fill, findings_of, plant

CODE = "SSM102"


def test_a_log_that_drifted_away_makes_an_accumulator_whatever_the_gate(tmp_path: Path) -> None:
    found = findings_of(CODE, plant(tmp_path, "mamba", {"1.mixer.A_log": fill(-20.0, 7)}))
    (finding,) = found
    assert (finding.severity, finding.layer, finding.count) == ("warning", "model.layers.1.mixer", 16)
    assert "16 of 4,096 modes never decay" in finding.message
    # float32 agrees: at any step up to 1 the state comes back unchanged.
    step = torch.logspace(-4, 0, 100)
    assert bool((torch.exp(-step * torch.tensor(-20.0).exp()) == 1).all())
    assert bool((torch.exp(-step * torch.tensor(-12.0).exp()) != 1).any())


def test_a_closed_gate_of_a_selective_model_is_a_note(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, plant(tmp_path, "mamba2", {"0.mixer.dt_bias": fill(-25.0, 3)}))
    assert (finding.severity, finding.count) == ("note", 1)
    assert finding.message.endswith("with the gates at their bias")


def test_steps_far_too_small_for_the_context_are_reported_with_their_share(tmp_path: Path) -> None:
    path = plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w - 5}, config={"l_max": 784})
    (finding, *others) = findings_of(CODE, path)
    assert len(others) == 2
    assert finding.severity == "warning"
    assert "all 784 steps of context" in finding.message
    assert finding.value > 0.5 == finding.threshold


def test_the_share_that_outlasts_the_context_is_that_of_the_stepped_recurrence(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    context = 784
    path = plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w - 5}, config={"l_max": context})
    state = load_file(path / "model.safetensors")
    for finding in findings_of(CODE, path):
        kernel = f"{finding.layer}.kernel"
        rate = (
            state[f"{kernel}.log_A_real"].double().exp() * state[f"{kernel}.log_dt"].double().exp()[:, None]
        ).flatten()
        held = torch.ones_like(rate)
        for _ in range(context):
            held = held * torch.exp(-rate)
        assert finding.count == int((held > 0.9).sum())
        assert finding.of == rate.numel()


def test_without_a_context_slow_modes_are_nobodys_business(tmp_path: Path) -> None:
    path = plant(tmp_path, "s4d-minimal", {"kernel.log_dt": lambda w: w - 5}, config={})
    assert findings_of(CODE, path) == []
    assert findings_of(CODE, path, context_length=784) != []


@pytest.mark.parametrize(("share", "reported"), [(0.45, False), (0.55, True)])
def test_half_of_the_modes_have_to_outlast_the_context(tmp_path: Path, share: float, reported: bool) -> None:
    path = plant(tmp_path, "lru-long", {"nu_log": fill(-12.0, slice(0, round(share * 64)))}, config={"seq_len": 1024})
    assert bool(findings_of(CODE, path)) is reported


def test_one_mode_on_the_boundary_is_a_warning_and_most_of_them_an_error(tmp_path: Path) -> None:
    (one, *_) = findings_of(CODE, plant(tmp_path / "one", "s5", {"layers_0.seq.Lambda_re": fill(0.0, 5)}))
    assert (one.severity, one.count) == ("warning", 1)
    assert "1 of 32 modes never decays: |λ̄| is 1 exactly" in one.message
    (most,) = findings_of(CODE, plant(tmp_path / "most", "s5", {"layers_0.seq.Lambda_re": fill(0.0, slice(0, 20))}))
    assert (most.severity, most.count) == ("error", 20)


def test_conservative_oscillators_and_fixed_decays_are_made_so(tmp_path: Path) -> None:
    imex = plant(tmp_path / "imex", "linoss", config={"linoss_discretization": "imex"})
    assert findings_of(CODE, imex, context_length=1000) == []
    stiff = {"A_diag": fill(-1.0, 0)}
    assert findings_of(CODE, plant(tmp_path / "im", "linoss", stiff), context_length=1000) != []
    assert findings_of(CODE, plant(tmp_path / "slopes", "minimax"), context_length=64) == []
    assert findings_of(CODE, plant(tmp_path / "retnet", "retnet"), context_length=8) == []


def test_a_mode_that_grows_is_not_counted_twice(tmp_path: Path) -> None:
    path = plant(tmp_path, "s5", {"layers_0.seq.Lambda_re": fill(0.1, 5)})
    assert findings_of(CODE, path) == []
    assert len(findings_of("SSM101", path)) == 1


def test_modes_that_are_not_finite_are_left_to_ssm401(tmp_path: Path) -> None:
    path = plant(tmp_path, "lru-long", {"0.seq.nu_log": fill(float("nan"), 3)})
    assert findings_of(CODE, path) == []
