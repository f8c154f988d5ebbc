"""SSM302: decays that are 1 in 16 bits, against modules that compute them there."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families.tiny_transformers import tiny_model
from tests.rules.healthy import save
from tests.rules.planting import cast, fill, findings_of, plant

CODE = "SSM302"


def slow_gates(width: int) -> torch.Tensor:
    """Return RG-LRU weights whose decays at an open half gate have time constants from 50 to 5,000 steps."""
    rate = 1 / torch.logspace(math.log10(50), math.log10(5000), width, dtype=torch.float64) / 4
    return torch.expm1(rate).log()


def rg_lru(dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        model = tiny_model("recurrent_gemma")
    module = next(part for part in model.modules() if type(part).__name__ == "RecurrentGemmaRglru")
    with torch.no_grad():
        module.recurrent_gate_weight.zero_()
        module.recurrent_gate_bias.zero_()
        module.input_gate_weight.zero_()
        module.recurrent_param.copy_(slow_gates(len(module.recurrent_param)))
    return module.to(dtype)


def impulse(module: Any, dtype: torch.dtype, steps: int = 64) -> torch.Tensor:
    """Return the state after one input at the start, (step, channel)."""
    module.recurrent_states = None
    x = torch.zeros(1, steps, len(module.recurrent_param), dtype=dtype)
    x[:, 0] = 1
    with torch.no_grad():
        return module(x, torch.arange(steps)[None])[0]


def test_rg_lru_in_bfloat16_holds_for_ever_the_modes_it_counts(tmp_path: Path) -> None:
    module = rg_lru(torch.bfloat16)
    state = {f"model.layers.0.temporal_block.rg_lru.{name}": value for name, value in module.state_dict().items()}
    (finding,) = findings_of(CODE, save(tmp_path / "model", state, {"dtype": "bfloat16"}))
    response = impulse(module, torch.bfloat16)
    held = response[-1] == response[0]
    assert finding.count == int(held.sum())
    assert 0 < finding.count < len(held)
    assert finding.severity == "warning"
    whole = impulse(rg_lru(torch.float64), torch.float64)
    assert not bool((whole[-1] == whole[0]).any())


def test_settings_alone_are_evidence_where_the_code_follows_them(tmp_path: Path) -> None:
    slow = {"recurrent_param": lambda w: slow_gates(len(w)).float()}
    assert findings_of(CODE, plant(tmp_path / "a", "rg-lru", slow, config={"torch_dtype": "float32"})) == []
    found = findings_of(
        CODE, plant(tmp_path / "b", "rg-lru", slow, config={"text_config": {"dtype": "torch.bfloat16"}})
    )
    assert len(found) == 3
    assert (
        "dtype in the settings, which exp(−8 r softplus(Λ)) in transformers' recurrent_gemma follows"
        in found[0].message
    )


def test_minimax_in_bfloat16_has_the_ratios_that_are_counted(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        model = tiny_model("minimax", num_hidden_layers=8, layer_types=["linear_attention"] * 7 + ["full_attention"])
    model = model.to(torch.bfloat16)
    slopes = [part.slope_rate for part in model.modules() if hasattr(part, "slope_rate")]
    state = {f"model.layers.{i}.self_attn.slope_rate": slope for i, slope in enumerate(slopes)}
    found = findings_of(CODE, save(tmp_path / "model", state, {"dtype": "bfloat16"}))
    ones = [int((torch.exp(-slope) == 1).sum()) for slope in slopes]
    assert [f.count for f in found] == [count for count in ones if count]
    assert sum(ones) > 0


def test_minimax_of_its_own_code_keeps_its_decays_in_float32(tmp_path: Path) -> None:
    names = {"output_gate.weight": (8, 8), "qkv_proj.weight": (24, 8), "norm.weight": (8,)}
    state = {f"model.layers.0.self_attn.{name}": torch.zeros(shape) for name, shape in names.items()}
    config = {"model_type": "minimax_text_01", "num_attention_heads": 64, "num_hidden_layers": 80}
    assert findings_of(CODE, save(tmp_path / "model", state, config | {"torch_dtype": "bfloat16"})) == []


def test_the_same_model_in_float32_says_nothing_whatever_its_time_constants(tmp_path: Path) -> None:
    slow = {"kernel.log_dt": lambda w: w - 3}
    assert findings_of(CODE, plant(tmp_path, "s4d-minimal", slow, config={"dtype": "bfloat16"})) == []
    assert findings_of(CODE, plant(tmp_path / "m", "mamba", config={"dtype": "bfloat16"})) == []


@pytest.mark.parametrize("name", ["mamba", "s4d-minimal"])
def test_a_note_where_the_reference_code_is_known_to_upcast(tmp_path: Path, name: str) -> None:
    changes = {"A_log" if name == "mamba" else "kernel.log_A_real": cast(torch.bfloat16)}
    found = findings_of(CODE, plant(tmp_path, name, changes))
    assert len(found) == 3
    assert {finding.severity for finding in found} == {"note"}


def test_a_warning_where_nothing_is_known_of_the_code(tmp_path: Path) -> None:
    changes = {"decay": cast(torch.bfloat16)}
    (finding,) = findings_of(CODE, plant(tmp_path, "retnet", changes))
    # γ = 1 − 2^(−5−h): the last four of eight heads are at or within 2⁻⁹ of 1.
    assert (finding.severity, finding.count, finding.of) == ("warning", 4, 8)
    assert "4 of 8 decays round to exactly 1 in bfloat16, those with time constants above 511 steps" in finding.message


def test_float16_keeps_what_bfloat16_loses(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, plant(tmp_path, "retnet", {"decay": cast(torch.float16)}))
    assert finding.count == 1


def test_modes_that_hold_their_state_anyway_are_not_counted(tmp_path: Path) -> None:
    path = plant(tmp_path, "retnet", {"decay": cast(torch.bfloat16)})
    assert findings_of(CODE, path, context_length=50) == []
    (finding,) = findings_of(CODE, path, context_length=200)
    assert finding.count == 2


def test_most_decays_lost_is_an_error(tmp_path: Path) -> None:
    changes = {"decay": lambda w: fill(-1e-4, slice(0, 5))(w).to(torch.bfloat16)}
    (finding,) = findings_of(CODE, plant(tmp_path, "retnet", changes))
    assert (finding.severity, finding.count) == ("error", 8)
