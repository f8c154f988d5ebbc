"""SSM406: a tensor that the other layers of the file have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmdiag import diagnose
from tests.rules.healthy import initial_state, save
from tests.rules.planting import findings_of

CODE = "SSM406"


def without(name: str, *endings: str) -> dict[str, torch.Tensor]:
    state = initial_state(name)
    kept = {key: value for key, value in state.items() if not key.endswith(endings)}
    assert len(kept) < len(state)
    return kept


@pytest.mark.parametrize("local", ["A_log", "dt_proj.bias"])
def test_what_the_decay_needs_is_named_as_finding_and_as_problem(local: str, tmp_path: Path) -> None:
    path = save(tmp_path / "m", without("mamba", f"layers.1.mixer.{local}"), {})
    (finding,) = findings_of(CODE, path)
    assert (finding.severity, finding.layer) == ("error", "model.layers.1.mixer")
    assert finding.tensor == f"model.layers.1.mixer.{local}"
    assert finding.message == f"looks like Mamba-1, but model.layers.1.mixer.{local} missing"
    assert diagnose(path, memory=False).exit_code() == 2


@pytest.mark.parametrize("name", ["mamba", "mamba3", "gated-deltanet", "kda", "plamo2"])
def test_what_the_decay_does_not_need_is_missed_too(name: str, tmp_path: Path) -> None:
    part = {"mamba": "D", "mamba3": "in_proj", "gated-deltanet": "b_proj", "kda": "o_norm", "plamo2": "dt_proj"}[name]
    prefix = "model.layers.2.attn" if name in ("gated-deltanet", "kda") else "model.layers.2.mixer"
    whole = initial_state(name)
    state = {
        key: value
        for key, value in whole.items()
        if key.split(f"{prefix}.")[-1].split(".")[0] != part or prefix not in key
    }
    assert len(state) < len(whole)
    (finding,) = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert finding.message == f"{part} missing, which 2 of 3 layers like it have"
    assert finding.layer == prefix


def test_a_mamba_without_any_skip_is_a_warning(tmp_path: Path) -> None:
    (finding,) = findings_of(CODE, save(tmp_path / "m", without("mamba", "mixer.D"), {}))
    assert (finding.severity, finding.layer, finding.count) == ("warning", None, 3)
    assert "no layer has a skip D" in finding.message


def test_layers_that_are_quantised_otherwise_lack_nothing(tmp_path: Path) -> None:
    state = initial_state("mamba")
    packed = state.pop("model.layers.1.mixer.in_proj.weight")
    state["model.layers.1.mixer.in_proj.qweight"] = torch.zeros(len(packed) // 8, 1, dtype=torch.int32)
    state["model.layers.1.mixer.in_proj.scales"] = torch.ones(8)
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


def test_what_one_layer_has_alone_is_no_gap_in_the_others(tmp_path: Path) -> None:
    state = initial_state("mamba") | {"model.layers.0.mixer.extra.weight": torch.ones(3)}
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


def test_models_whose_layers_differ_by_design_are_left_alone(tmp_path: Path) -> None:
    """RWKV-7's first layer has no v0, v1, v2."""
    state = initial_state("rwkv7")
    state |= {f"blocks.{layer}.att.v0": torch.zeros(128) for layer in (1, 2)}
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))
