"""SSM402: a recurrence that stands exactly where it started while the rest was trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.rules.healthy import initial_state, save, trained_state
from tests.rules.initialisations import ARCHITECTURES
from tests.rules.planting import findings_of

CODE = "SSM402"

RATES = {
    "mamba": "A_log", "vim": "A_log", "vmamba": "A_logs", "hymba": "A_log.0", "zamba": "A_log", "plamo2": "A_log",
    "s4d-minimal": "kernel.log_A_real", "stablessm": "kernel.log_A_real", "s4d": "A_real", "s4d-real": "A_real",
    "s4": "A_real", "s4-v3": "inv_w_real", "h3": "inv_A_real", "dss": "Lambda", "dss-exp": "Lambda_log_neg_re",
    "annotated-s4d": "A_re", "annotated-s4": "Lambda_re", "s5": "Lambda_re", "gla": "gk_proj.1.bias",
    "mlstm-large": "fgate_preact.bias", "mlstm": "mlstm_cell.fgate.bias",
    "rwkv4": "time_decay", "rwkv5": "time_decay", "rwkv6": "time_decay",
    "rwkv7": "w0",
}  # fmt: skip
"""Models whose rates start at values that can be told from trained ones."""


def frozen(name: str, directory: Path, *, dtype: torch.dtype | None = None) -> Path:
    """Write a trained model whose rates are those of its initialisation."""
    state, fresh = trained_state(name), initial_state(name)
    for key in state:
        if key.endswith(f".{RATES[name]}"):
            state[key] = fresh[key] if dtype is None else fresh[key].to(dtype)
    return save(directory / name, state, dict(ARCHITECTURES[name].config))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", RATES)
def test_rates_that_were_left_out_of_training_are_found_in_every_family(name: str, tmp_path: Path) -> None:
    found = findings_of(CODE, frozen(name, tmp_path))
    layers = {finding.layer for finding in found}
    assert len(layers) >= ARCHITECTURES[name].layers
    assert {finding.severity for finding in found} == {"warning"}
    assert all(finding.count == finding.of for finding in found)
    assert all("is no longer constant" in finding.message for finding in found)


def test_the_message_names_the_start(tmp_path: Path) -> None:
    (finding, *_) = findings_of(CODE, frozen("mamba", tmp_path))
    assert finding.message == (
        "A_log is still log 1 … log 16, to the last bit, though model.layers.0.norm.weight is no longer constant"
    )
    (finding, *_) = findings_of(CODE, frozen("s4d", tmp_path))
    assert finding.message.startswith("A_real is still -0.6931 in every mode"), math.log(0.5)
    (finding, *_) = findings_of(CODE, frozen("rwkv5", tmp_path))
    assert finding.message.startswith("time_decay is still a power of the channel's index")
    (finding, *_) = findings_of(CODE, frozen("mlstm-large", tmp_path))
    assert finding.message.startswith("fgate_preact.bias is still evenly spaced")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_to_another_dtype_hides_nothing(dtype: torch.dtype, tmp_path: Path) -> None:
    assert len(findings_of(CODE, frozen("mamba", tmp_path, dtype=dtype))) == 3


def test_values_that_were_rounded_to_bf16_and_stored_in_float32_are_recognised(tmp_path: Path) -> None:
    state = trained_state("mamba")
    for key, value in initial_state("mamba").items():
        if key.endswith("A_log"):
            state[key] = value.bfloat16().float()
    assert len(findings_of(CODE, save(tmp_path / "m", state, {}))) == 3


def test_a_move_in_the_sixth_digit_is_training(tmp_path: Path) -> None:
    state = trained_state("mamba")
    for key, value in initial_state("mamba").items():
        if key.endswith("A_log"):
            state[key] = value * (1 + 1e-5)
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


@pytest.mark.parametrize(("moved", "reported"), [(100, True), (156, False)])
def test_half_of_the_channels_have_to_stand_still(tmp_path: Path, moved: int, reported: bool) -> None:
    """A channel of a trained model may be dead, and get no gradient."""
    state, fresh = trained_state("mamba"), initial_state("mamba")
    for key in state:
        if key.endswith("A_log"):
            state[key][moved:] = fresh[key][moved:]
    found = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert bool(found) is reported
    if reported:
        assert "156 of 256 channels of A_log are still log 1 … log 16" in found[0].message


@pytest.mark.parametrize("freeze", ["eigenvalues", "both"])
def test_a_recurrence_that_retrain_froze_is_as_its_file_says(freeze: str, tmp_path: Path) -> None:
    path = frozen("mamba", tmp_path)
    arm = {"param": "exp", "freeze": freeze}
    (path / "config.json").write_text(json.dumps({"arm": arm}))
    assert not findings_of(CODE, path)
    (path / "config.json").write_text(json.dumps({"arm": {**arm, "freeze": "step"}}))
    assert findings_of(CODE, path)
    state = load_file(path / "model.safetensors")
    save_file(state, path / "model.safetensors", {"arm": json.dumps(arm)})
    (path / "config.json").unlink()
    assert not findings_of(CODE, path), "arms of a user's own module say so in the file itself"


def test_decays_that_are_never_trained_are_left_alone(tmp_path: Path) -> None:
    for name in ("retnet", "minimax"):
        path = save(tmp_path / name, trained_state(name), dict(ARCHITECTURES[name].config))
        assert not findings_of(CODE, path)
