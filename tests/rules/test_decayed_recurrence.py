"""SSM501: weight decay on A, Δ and D, from optimisers of torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.rules.healthy import initial_state, save
from tests.rules.planting import findings_of
from tests.rules.training_states import save_training

CODE = "SSM501"
TAGGED = ("A_log", ".D", "dt_proj.bias", "dt_bias")


def test_one_group_for_everything_decays_the_recurrence(tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: 0, [{"weight_decay": 0.1}])
    found = findings_of(CODE, path)
    assert [finding.layer for finding in found] == [f"model.layers.{layer}.mixer" for layer in range(3)]
    assert {finding.severity for finding in found} == {"warning"}
    assert found[0].count == 3
    assert "A_log, D and dt_proj.bias are under the weight decay 0.1" in found[0].message


def test_half_of_a_weight_is_gone_after_the_steps_the_message_says() -> None:
    """torch's own AdamW on a weight without a gradient to speak of."""
    rate, decay = 1e-2, 1.0
    steps = round(math.log(2) / (rate * decay))
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([weight], lr=rate, weight_decay=decay)
    for _ in range(steps):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert weight.item() == pytest.approx(0.5, rel=0.01)


def test_the_message_says_how_fast(tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: 0, [{"weight_decay": 0.1, "lr": 1e-3}])
    assert "which halves them every 6,931 steps at its learning rate 0.001" in findings_of(CODE, path)[0].message


def test_a_schedule_that_has_come_to_its_end_is_told_apart_from_its_start(tmp_path: Path) -> None:
    groups = [{"weight_decay": 0.1, "lr": 0.0, "initial_lr": 1e-3}]
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: 0, groups)
    said = findings_of(CODE, path)[0].message
    assert "which halves them every 6,931 steps at the learning rate 0.001 it began with (0 now)" in said


def test_a_decay_too_slow_to_matter_is_a_note(tmp_path: Path) -> None:
    groups = [{"weight_decay": 0.01, "lr": 1e-5}]
    found = findings_of(CODE, save_training(tmp_path / "m.ckpt", "mamba", lambda name: 0, groups))
    assert {finding.severity for finding in found} == {"note"}


def test_a_group_of_their_own_without_decay_is_as_it_should_be(tmp_path: Path) -> None:
    groups = [{"weight_decay": 0.1}, {"weight_decay": 0.0}]
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: int(name.endswith(TAGGED)), groups)
    assert not findings_of(CODE, path)


def test_biases_left_out_by_name_still_leave_a_log_and_d(tmp_path: Path) -> None:
    """As transformers' Trainer groups parameters: bias and norm apart."""
    groups = [{"weight_decay": 0.1}, {"weight_decay": 0.0}]
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda name: int("bias" in name or "norm" in name), groups)
    (finding, *_) = findings_of(CODE, path)
    assert "A_log and D are under the weight decay 0.1" in finding.message


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("s4d-minimal", "kernel.A_imag, kernel.log_A_real and kernel.log_dt"),
        ("s5", "Lambda_im, Lambda_re and log_step"),
        ("lru", "gamma_log, nu_log and theta_log"),
        ("mamba2", "A_log, D and dt_bias"),
        ("rwkv6", "time_decay"),
    ],
)
def test_each_familys_weights_are_named(name: str, weights: str, tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", name, lambda key: 0, [{"weight_decay": 0.1}])
    (finding, *_) = findings_of(CODE, path)
    said = finding.message.partition(" under ")[0].removesuffix(" are").removesuffix(" is")
    assert sorted(said.replace(" and ", ", ").split(", ")) == weights.replace(" and ", ", ").split(", ")


def test_without_an_optimiser_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert not findings_of(CODE, save(tmp_path / "m", initial_state("mamba"), {}))


def test_fixed_decays_are_buffers_and_left_alone(tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "minimax", lambda name: 0, [{"weight_decay": 0.1}])
    assert not findings_of(CODE, path)
