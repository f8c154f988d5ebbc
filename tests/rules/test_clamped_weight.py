"""SSM103: weights beyond a clamp have no gradient, and transformers' own code agrees about Δ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssmdiag.recurrence.maps import MAPS
from tests.families.tiny_transformers import TINY
from tests.rules.planting import fill, findings_of, plant

CODE = "SSM103"


def test_s5_modes_above_its_clip_have_no_gradient(tmp_path: Path) -> None:
    path = plant(tmp_path, "s5", {"layers_1.seq.Lambda_re": fill(-2e-5, slice(0, 3))})
    assert findings_of(CODE, path) == []
    (finding,) = findings_of(CODE, path, assume={"clip_eigs": "true"})
    assert (finding.severity, finding.count, finding.of) == ("warning", 3, 32)
    assert finding.layer == "params.encoder.layers_1.seq"
    assert finding.tensor == "params.encoder.layers_1.seq.Lambda_re"
    weights = load_file(path / "model.safetensors")[finding.tensor].requires_grad_()
    MAPS["direct, at least 1e-4"](weights).sum().backward()
    assert int((weights.grad == 0).sum()) == finding.count


def test_the_annotated_s4d_clips_without_asking(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, plant(tmp_path, "annotated-s4d", {"layers_0.seq.A_re": fill(0.3, (0, slice(0, 9)))}))
    assert finding.count == 9


def test_oscillators_below_zero_are_dead(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, plant(tmp_path, "linoss", {"blocks.0.ssm.A_diag": fill(-0.1, slice(0, 4))}))
    assert (finding.count, finding.of) == (4, 32)
    assert "4 of 32 values of A_diag lie where its map max(w, 0) is flat: their gradient is 0" in finding.message


def test_relu_rates_begun_from_a_normal_are_half_dead(tmp_path: Path) -> None:
    # What SimpleDiagonalRNN does at initialisation: torch.randn through relu.
    draw = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (finding,) = findings_of(CODE, plant(tmp_path, "curse-of-memory", {"W.weight": lambda w: draw}))
    assert finding.count == int((draw <= 0).sum())
    (learnt,) = findings_of("SSM102", tmp_path / "planted")
    assert learnt.count == finding.count


def test_dss_above_its_limit_and_gla_below_its_floor(tmp_path: Path) -> None:
    dss = plant(tmp_path / "dss", "dss", {"0.kernel.Lambda": fill(0.01, (slice(0, 2), 0))})
    assert findings_of(CODE, dss) == []
    (finding,) = findings_of(CODE, dss, assume={"version": "clip"})
    assert finding.count == 2
    floor = {"clamp_min": -0.5, "num_heads": 4}
    gla = plant(tmp_path / "gla", "gla", {"0.attn.gk_proj.1.bias": fill(-20.0, slice(0, 5))}, config=floor)
    (finding,) = findings_of(CODE, gla)
    assert finding.count == 5


@pytest.mark.parametrize("model_type", ["nemotron_h", "zamba2", "mamba2"])
def test_heads_whose_step_transformers_clamps_are_those_whose_gradient_vanishes(
    tmp_path: Path, model_type: str
) -> None:
    module, config = _mixer(model_type, {"time_step_limit": (0.01, 0.05)} if model_type == "mamba2" else {})
    _save(module, config, tmp_path)
    (finding,) = findings_of(CODE, tmp_path / "model")
    module.zero_grad()
    x = torch.randn(1, 16, TINY[model_type]["hidden_size"], dtype=torch.float64)
    module(x).square().sum().backward()
    dead = module.dt_bias.grad == 0
    assert finding.count == int(dead.sum())
    assert 0 < finding.count < len(dead)
    assert finding.severity == "warning"


def _mixer(model_type: str, more: dict[str, Any]) -> tuple[Any, Any]:
    """Return transformers' mixer with Δ at its bias, half of the heads outside its limits, and its configuration."""
    import importlib

    from tests.families.tiny_transformers import tiny_model

    with torch.random.fork_rng(devices=[]):
        model = tiny_model(model_type, **more)
    config = model.config
    name = {"nemotron_h": "NemotronHMamba2Mixer", "zamba2": "Zamba2MambaMixer", "mamba2": "Mamba2Mixer"}[model_type]
    package = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
    module = next(part for part in model.modules() if isinstance(part, getattr(package, name)))
    heads = len(module.dt_bias)
    with torch.no_grad():
        # The last rows of in_proj make Δ: without them it is its bias, at every token.
        module.in_proj.weight[-heads:] = 0
        if module.in_proj.bias is not None:
            module.in_proj.bias[-heads:] = 0
        step = torch.logspace(-4, -1, heads, dtype=torch.float64)
        module.dt_bias.copy_(step + (-torch.expm1(-step)).log())
    return module, config


def _save(module: Any, config: Any, tmp_path: Path) -> None:
    from tests.rules.healthy import save

    state = {f"model.layers.0.mixer.{name}": value.detach() for name, value in module.state_dict().items()}
    save(tmp_path / "model", state, {"model_type": config.model_type, **_limits(config)})


def _limits(config: Any) -> dict[str, Any]:
    return (
        {"time_step_limit": list(config.time_step_limit)} if config.model_type == "mamba2" else {"time_step_min": 0.001}
    )


def test_a_step_within_rounding_of_its_limit_is_not_beyond_it(tmp_path: Path) -> None:
    config = {"model_type": "nemotron_h", "time_step_min": 0.001}
    at = torch.full((32,), 0.001 * 0.98)
    within = plant(tmp_path / "at", "mamba2", {"dt_bias": lambda w: at + (-torch.expm1(-at)).log()}, config=config)
    assert findings_of(CODE, within) == []
    assert len(findings_of(CODE, within, thresholds={"beyond": 0.01})) == 3


def test_limits_nobody_can_read_are_left_aside(tmp_path: Path) -> None:
    path = plant(tmp_path, "mamba2", {"dt_bias": fill(-20.0, 0)}, config={"time_step_limit": "auto"})
    assert findings_of(CODE, path) == []


def test_share_sets_how_many_may_be_clamped(tmp_path: Path) -> None:
    path = plant(tmp_path, "linoss", {"blocks.0.ssm.A_diag": fill(-0.1, slice(0, 4))})
    assert findings_of(CODE, path, thresholds={"share": 0.2}) == []
    assert len(findings_of(CODE, path, thresholds={"share": 0.1})) == 1
