"""Whether norms, skips and the file's step tell trained models from fresh ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmdiag import read_checkpoint, recognise
from ssmdiag.assessment.training_signs import NORM, TrainingSigns, read_training_signs
from tests.rules.healthy import ARCHITECTURES, EXAMPLES, HEALTHY, Healthy, initial_state, save, trained_state

TOLD = [
    pytest.param(
        model,
        id=f"{model.name}-{'trained' if model.trained else 'fresh'}",
        marks=[pytest.mark.slow] if model.name.startswith("transformers-") else [],  # built before they are read
    )
    for model in HEALTHY
    if not model.slow and not model.name.startswith(("curse-of-memory", "s5-pytorch", "LRU-pytorch"))
]
"""The curse-of-memory RNNs have neither norms nor skips; modules that are trained for the purpose take seconds."""


def signs(path: Path) -> TrainingSigns:
    checkpoint = read_checkpoint(path)
    return read_training_signs(checkpoint, recognise(checkpoint))


@pytest.mark.one_in(9)
@pytest.mark.parametrize("model", TOLD)
def test_every_healthy_model_is_told_for_what_it_is(model: Healthy, tmp_path: Path) -> None:
    assert signs(model.write(tmp_path / "model")).trained is model.trained


def test_nothing_to_tell_by_is_said(tmp_path: Path) -> None:
    found = signs(save(tmp_path / "m", initial_state("curse-of-memory"), {}))
    assert found == TrainingSigns(None, "the file has no norm or skip weights")


@pytest.mark.parametrize(
    "name",
    [
        "backbone.layers.0.norm.weight", "norms.3.bias", "ln_f.weight", "blocks.0.ln1.bias", "model.norm_f.weight",
        "input_layernorm.weight", "LayerNorm_0.scale", "params.encoder.layers_0.norm.scale", "bn1.weight",
        "mixer.dt_norm_weight", "q_norm.weight",
    ],
)  # fmt: skip
def test_norms_are_known_under_their_many_names(name: str) -> None:
    assert NORM.search(name)


@pytest.mark.parametrize("name", ["mixer.in_proj.weight", "normal.mean", "linear.bias", "norm.running_mean", "lnx"])
def test_other_tensors_are_no_norms(name: str) -> None:
    assert not NORM.search(name)


def test_skips_serve_where_there_is_no_norm_and_only_where_they_start_at_one(tmp_path: Path) -> None:
    def bare(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in state.items() if "norm" not in name}

    assert signs(save(tmp_path / "fresh", bare(initial_state("mamba")), {})).trained is False
    assert signs(save(tmp_path / "trained", bare(trained_state("mamba")), {})).trained is True
    assert signs(save(tmp_path / "s4d", bare(initial_state("s4d-minimal")), {})).trained is None, "D starts at N(0, 1)"


def test_one_statistic_of_the_data_makes_no_model_trained(tmp_path: Path) -> None:
    state = initial_state("mamba") | {"normalizer.scale": torch.rand(7)}
    assert signs(save(tmp_path / "m", state, {})).trained is False


def test_distance_is_the_spread_that_norms_have_gained(tmp_path: Path) -> None:
    state = initial_state("mamba")
    for layer in range(ARCHITECTURES["mamba"].layers):
        state[f"model.layers.{layer}.norm.weight"] = torch.tensor([1.0, 1.2, 0.8, 1.0])
    found = signs(save(tmp_path / "m", state, {}))
    assert found.distance == pytest.approx(torch.tensor([1.0, 1.2, 0.8, 1.0]).double().std().item(), rel=1e-6)
    assert (found.moved, found.still) == (3, 0)


def test_distance_grows_over_a_training() -> None:
    """The shipped S4D, from step 100 on; at step 0 the file says so itself."""
    runs = [signs(path) for path in EXAMPLES if path.parent.name == "s4d-digits"]
    assert runs[0] == TrainingSigns(False, "the file says step 0")
    distances = [run.distance or 0.0 for run in runs[1:5]]
    assert distances[0] > 0
    assert distances == sorted(distances)
