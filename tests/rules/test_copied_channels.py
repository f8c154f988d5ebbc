"""SSM408: a shard in the place of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.rules.healthy import initial_state, save, trained_state
from tests.rules.initialisations import ARCHITECTURES
from tests.rules.planting import findings_of

CODE = "SSM408"


def merged(state: dict[str, Tensor], units: int, shards: int, order: list[int]) -> dict[str, Tensor]:
    """Put the shards of every tensor with a row per channel together in that order."""
    result = {}
    for name, values in state.items():
        if values.shape[:1] == (units,) and "norm" not in name:
            parts = values.split(units // shards)
            values = torch.cat([parts[index] for index in order])
        result[name] = values
    return result


@pytest.mark.one_in(3)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("name", "units"), [("mamba", 256), ("mamba2", 32), ("gated-deltanet", 32), ("s4d-minimal", 64), ("rwkv4", 128)]
)
def test_a_rank_read_twice_is_found(name: str, units: int, trained: bool, tmp_path: Path) -> None:
    state = merged(trained_state(name) if trained else initial_state(name), units, 4, [0, 1, 1, 3])
    found = findings_of(CODE, save(tmp_path / "m", state, dict(ARCHITECTURES[name].config)))
    size = units // 4
    assert len(found) == 3
    assert found[0].severity == "error"
    assert found[0].message == (
        f"channels {2 * size:,} to {3 * size - 1:,} are copies of {size:,} to {2 * size - 1:,}, to the last bit "
        f"(1 of 4 shards of {size:,} are copies)"
    )
    assert (found[0].count, found[0].of) == (size, units)


def test_one_rank_in_the_place_of_all_is_counted(tmp_path: Path) -> None:
    state = merged(trained_state("mamba2"), 32, 4, [0, 0, 0, 0])
    (finding, *_) = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert "(1 of 2 shards of 16 are copies)" in finding.message, "two halves, each a copy of the other"
    assert finding.count == 16


def test_rounding_to_bf16_first_changes_nothing(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in merged(trained_state("mamba2"), 32, 2, [1, 1]).items()}
    assert len(findings_of(CODE, save(tmp_path / "m", state, {}))) == 3
    whole = {name: value.bfloat16() for name, value in trained_state("mamba2").items()}
    assert not findings_of(CODE, save(tmp_path / "whole", whole, {}))


@pytest.mark.parametrize("local", ["D", "conv1d.weight"])
def test_a_trained_step_that_is_equal_says_enough(local: str, tmp_path: Path) -> None:
    state, own = merged(trained_state("mamba"), 256, 2, [0, 0]), trained_state("mamba")
    state |= {name: value for name, value in own.items() if name.endswith(f"mixer.{local}")}
    found = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert len(found) == 3
    assert "to the last bit in A and Δ, though not in D or the convolution (1 of 2 shards" in found[0].message


@pytest.mark.parametrize("local", ["A_log", "dt_proj.bias"])
def test_channels_that_differ_in_a_or_the_step_are_no_copies(local: str, tmp_path: Path) -> None:
    state, own = merged(trained_state("mamba"), 256, 2, [0, 0]), trained_state("mamba")
    state |= {name: value for name, value in own.items() if name.endswith(f"mixer.{local}")}
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


def test_equal_rows_of_a_fresh_a_log_and_constant_gates_are_no_copies(tmp_path: Path) -> None:
    for name in ("mamba", "vmamba", "zamba", "gla", "s4d", "dss", "rwkv5"):
        assert not findings_of(CODE, save(tmp_path / name, initial_state(name), dict(ARCHITECTURES[name].config))), name


def test_modes_of_a_state_that_all_inputs_share_are_compared(tmp_path: Path) -> None:
    state = initial_state("lru")
    for name in ("nu_log", "theta_log"):
        values = state[f"params.encoder.layers_0.seq.{name}"]
        values[32:] = values[:32]
    (finding,) = findings_of(CODE, save(tmp_path / "m", state, {}))
    assert finding.message.startswith("modes 32 to 63 are copies of 0 to 31")


def test_a_few_equal_channels_are_chance_or_dead(tmp_path: Path) -> None:
    state = trained_state("mamba")
    for name, values in state.items():
        if values.shape[:1] == (256,) and "norm" not in name:
            values[17] = values[16]
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))


def test_a_step_that_repeats_itself_from_the_start_is_no_copy_unless_all_else_is(tmp_path: Path) -> None:
    """A few values of Δ in turn, as some code starts it: equal shards by design, with a D of their own."""
    state, own = merged(trained_state("mamba"), 256, 2, [0, 0]), trained_state("mamba")
    for name in state:
        if name.endswith("dt_proj.bias"):
            state[name] = torch.linspace(-6, -2, 8).repeat(32)
    state |= {name: value for name, value in own.items() if name.endswith("mixer.D")}
    assert not findings_of(CODE, save(tmp_path / "m", state, {}))
