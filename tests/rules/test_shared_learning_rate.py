"""SSM502: A and Δ in the group of everything, at a learning rate that their code would not give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.healthy import initial_state, save
from tests.rules.planting import findings_of
from tests.rules.training_states import save_training

CODE = "SSM502"
RECURRENT = ("log_dt", "log_A_real", "A_imag", "Lambda_re", "Lambda_im", "log_step", "nu_log", "theta_log", "gamma_log")


def recurrent_apart(name: str) -> int:
    return int(name.endswith(RECURRENT))


@pytest.mark.parametrize("name", ["s4d-minimal", "s5", "lru", "dss-exp"])
def test_one_group_at_a_large_rate_is_found(name: str, tmp_path: Path) -> None:
    found = findings_of(CODE, save_training(tmp_path / "m.ckpt", name, lambda key: 0, [{"lr": 0.01}]))
    assert len(found) == 3
    assert (found[0].severity, found[0].value, found[0].threshold) == ("warning", 0.01, 0.001)
    assert "learn at 0.01, in one group with " in found[0].message
    assert "; their code gives them 0.001 at most, in a group of their own" in found[0].message
    beside = found[0].message.partition("in one group with ")[2].partition(";")[0]
    assert not any(name in beside for name in RECURRENT)


def test_a_group_of_their_own_is_as_it_should_be(tmp_path: Path) -> None:
    groups = [{"lr": 0.01}, {"lr": 0.001, "weight_decay": 0.0}]
    assert not findings_of(CODE, save_training(tmp_path / "m.ckpt", "s4d-minimal", recurrent_apart, groups))


def test_a_group_of_their_own_at_any_rate_was_chosen(tmp_path: Path) -> None:
    groups = [{"lr": 0.001}, {"lr": 0.01, "weight_decay": 0.0}]
    assert not findings_of(CODE, save_training(tmp_path / "m.ckpt", "s4d-minimal", recurrent_apart, groups))


@pytest.mark.parametrize(("rate", "reported"), [(0.001, False), (0.002, True)])
def test_a_rate_within_the_limit_suits_all(rate: float, reported: bool, tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "s4d-minimal", lambda key: 0, [{"lr": rate}])
    assert bool(findings_of(CODE, path)) is reported


def test_the_rate_before_the_schedule_counts(tmp_path: Path) -> None:
    groups = [{"lr": 1e-7, "initial_lr": 0.01}]
    assert findings_of(CODE, save_training(tmp_path / "m.ckpt", "s4d-minimal", lambda key: 0, groups))


def test_mambas_code_asks_for_no_rate_of_its_own(tmp_path: Path) -> None:
    path = save_training(tmp_path / "m.ckpt", "mamba", lambda key: 0, [{"lr": 0.01}])
    assert not findings_of(CODE, path)


def test_without_an_optimiser_there_is_nothing_to_say(tmp_path: Path) -> None:
    assert not findings_of(CODE, save(tmp_path / "m", initial_state("s4d-minimal"), {}))
