"""Tiny models of transformers, saved and read back, against what their own code does to a state."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag.checkpoint.names import layer_numbers
from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.recurrence.modal import Recurrence
from tests.families.tiny_transformers import save_tiny
from tests.tolerances import EIGENVALUES

MAMBA1 = ("mamba", "falcon_mamba", "jamba", "zamba")
MAMBA2 = ("mamba2", "zamba2", "bamba", "nemotron_h", "granitemoehybrid", "falcon_h1")
HYBRIDS = {
    "jamba": [0, 2], "zamba": [0, 1, 2, 3], "zamba2": [0, 1, 2, 3], "bamba": [0, 2], "nemotron_h": [0],
    "granitemoehybrid": [0],
}  # fmt: skip
"""Which layers of the tiny hybrids carry a recurrence."""
FAMILY = {"mamba": "mamba", "falcon_mamba": "mamba", "jamba": "mamba", "zamba": "zamba"}
LARGE = 1e6


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lift the casts to float32 in the original code, so that a comparison is not limited by them."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def recurrent_layers(model: Any) -> list[Any]:
    """Return the model's own modules that hold an A_log, in layer order."""
    found = [module for module in model.modules() if isinstance(getattr(module, "A_log", None), torch.nn.Parameter)]
    return sorted(found, key=lambda module: module.layer_idx)


def close_gate(mixer: Any) -> None:
    """Make Δ of a Mamba-1 layer independent of its input, so that its own forward runs at the bias."""
    weight = mixer.dt_proj_weight if hasattr(mixer, "dt_proj_weight") else mixer.dt_proj.weight
    with torch.no_grad():
        weight.zero_()


def forgotten(model: Any, mixer: Any, tokens: int) -> torch.Tensor:
    """Return log of what `tokens` zero inputs leave of a unit state, by the mixer's own forward and cache.

    Two copies of the model's cache differ in every state and in nothing else, so that their difference is
    the homogeneous solution, whatever the biases drive into both; it is large, so that little cancels.
    """
    import transformers

    cache = transformers.DynamicCache(config=model.config)
    prompt = torch.randn(1, 5, model.config.hidden_size, dtype=torch.float64).expand(2, -1, -1)
    with torch.no_grad():
        mixer(prompt, cache)  # by position: its name changed in transformers 5.24
        state = cache.get_recurrent_state(mixer.layer_idx)
        state[0], state[1] = 0.0, LARGE
        mixer(torch.zeros(2, tokens, model.config.hidden_size, dtype=torch.float64), cache)
        state = cache.get_recurrent_state(mixer.layer_idx)
        return ((state[1] - state[0]) / LARGE).double().log()


def assert_layers(model_type: str, found: list[Recurrence]) -> None:
    numbers = [int(layer_numbers(recurrence.layer)[0]) for recurrence in found]
    assert numbers == HYBRIDS.get(model_type, [0, 1])
    assert {recurrence.family for recurrence in found} == {FAMILY.get(model_type, "mamba2")}
    assert all(recurrence.dtype == "float64" for recurrence in found)


def assert_forgets(model: Any, mixer: Any, tokens: int, ell: torch.Tensor, rtol: float, atol: float = 1e-12) -> None:
    own = forgotten(model, mixer, tokens) / tokens
    if ell.shape[1] == 1:  # Mamba-2 has one mode per head, shared by its features and states
        ell = ell[:, :, None].expand_as(own)
    torch.testing.assert_close(ell, own.reshape(ell.shape), rtol=rtol, atol=atol)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("model_type", MAMBA1)
def test_mamba_a_token_forgets_as_much_as_the_file_says(model_type: str, tmp_path: Path) -> None:
    model, directory = save_tiny(model_type, tmp_path)
    found = extract_recurrences(directory)
    assert_layers(model_type, found)
    for mixer, recurrence in zip(recurrent_layers(model), found, strict=True):
        close_gate(mixer)
        assert_forgets(model, mixer, 1, recurrence.log_eigenvalues.real, rtol=1e-11)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("model_type", MAMBA2)
def test_mamba2_a_token_forgets_as_much_as_the_file_says(model_type: str, tmp_path: Path) -> None:
    model, directory = save_tiny(model_type, tmp_path)
    found = extract_recurrences(directory)
    assert_layers(model_type, found)
    # Falcon-H1 rounds A to float32 in a step, by a cast that stays.
    rtol = EIGENVALUES if model_type == "falcon_h1" else 1e-11
    for mixer, recurrence in zip(recurrent_layers(model), found, strict=True):
        assert_forgets(model, mixer, 1, recurrence.log_eigenvalues.real, rtol)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("model_type", MAMBA2)
def test_mamba2_a_prompt_forgets_alike_but_for_the_clamp_that_the_note_counts(model_type: str, tmp_path: Path) -> None:
    # Limits amid the steps that each model draws.
    low = {"mamba2": 0.02, "zamba2": 0.05, "nemotron_h": 0.07}.get(model_type, 1.3)
    clamp = {"time_step_min": low} if model_type in ("zamba2", "nemotron_h") else {"time_step_limit": [low, math.inf]}
    model, directory = save_tiny(model_type, tmp_path, **clamp)
    for mixer, recurrence in zip(recurrent_layers(model), extract_recurrences(directory), strict=True):
        A, step = mixer.A_log.detach().exp(), torch.nn.functional.softplus(mixer.dt_bias.detach())
        below = int((step < low).sum())
        assert 0 < below < 8
        assert any(f"{below} of 8 heads" in note for note in recurrence.notes)
        torch.testing.assert_close(recurrence.rate[:, 0], A * step, rtol=1e-12, atol=0)
        assert_forgets(model, mixer, 2, -(A * step.clamp(min=low))[:, None], rtol=1e-9)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("model_type", MAMBA1 + MAMBA2)
def test_the_models_own_float32_agrees(model_type: str, tmp_path: Path) -> None:
    model, directory = save_tiny(model_type, tmp_path)
    for mixer, recurrence in zip(recurrent_layers(model), extract_recurrences(directory), strict=True):
        if model_type in MAMBA1:
            close_gate(mixer)
        assert_forgets(model, mixer, 1, recurrence.log_eigenvalues.real, rtol=EIGENVALUES, atol=EIGENVALUES)


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("model_type", "setting"),
    [
        ("mamba2", {"use_bias": True}),
        ("bamba", {"mamba_proj_bias": True}),
        ("falcon_h1", {"mamba_proj_bias": True, "ssm_multipliers": [1.0, 0.5, 2.0, 3.0, 0.25]}),
        ("falcon_h1", {"mamba_proj_bias": True, "ssm_in_multiplier": 3.0}),
    ],
)
def test_a_bias_of_in_proj_moves_the_step_as_in_the_models_own_code(
    model_type: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    model, directory = save_tiny(model_type, tmp_path, **setting)
    for mixer, recurrence in zip(recurrent_layers(model), extract_recurrences(directory), strict=True):
        assert mixer.in_proj.bias is not None
        assert_forgets(model, mixer, 1, recurrence.log_eigenvalues.real, rtol=EIGENVALUES)


@pytest.mark.one_in(2)
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("model_type", MAMBA1)
def test_zero_input_is_another_operating_point_as_the_report_says(model_type: str, tmp_path: Path) -> None:
    model, directory = save_tiny(model_type, tmp_path)
    found = extract_recurrences(directory)
    for mixer, recurrence in zip(recurrent_layers(model), found, strict=True):
        assert "at zero input Δ differs from its bias: a bias before x_proj reaches it" in recurrence.notes
        ell = recurrence.log_eigenvalues.real
        own = forgotten(model, mixer, 1).reshape(ell.shape)
        assert float((own / ell - 1).abs().max()) > 0.05


@pytest.mark.usefixtures("in_float64")
def test_the_language_model_inside_one_that_sees_forgets_as_much_as_the_file_says(tmp_path: Path) -> None:
    model, directory = save_tiny("nemotron_h_omni", tmp_path)
    (inner,) = (module for module in model.modules() if type(module).__name__ == "NemotronHModel")
    (mixer,) = recurrent_layers(inner)
    (recurrence,) = extract_recurrences(directory)
    assert_forgets(inner, mixer, 1, recurrence.log_eigenvalues.real, rtol=1e-11)
