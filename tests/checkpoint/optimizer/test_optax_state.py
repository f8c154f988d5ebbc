"""optax's state: groups, names and settings as JAX programs save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import diagnose, read_checkpoint
from tests.checkpoint.formats.flax_files import S5_TRAIN_STATE, pack
from tests.checkpoint.formats.orbax_folders import unpack

PARAMS = {"layers_0": {"A_log": torch.zeros(4, 2), "D": torch.ones(4)}, "head": {"kernel": torch.ones(4, 3)}}
ADAM = {"count": 3, "mu": PARAMS, "nu": PARAMS}


def groups(state: Any, folder: Path) -> list[tuple[float | None, float | None, tuple[str, ...] | None, int]]:
    (folder / "m.msgpack").write_bytes(pack({"params": PARAMS, "opt_state": state, "step": 3}))
    found = read_checkpoint(folder / "m.msgpack").optimizer_groups
    return [(group.learning_rate, group.weight_decay, group.parameters, group.count) for group in found]


def test_the_groups_of_a_multi_transform_are_read_from_what_orbax_wrote(tmp_path: Path) -> None:
    rest, slow = read_checkpoint(unpack(tmp_path)).optimizer_groups
    assert rest.learning_rate == pytest.approx(4e-3, rel=1e-6)
    assert rest.weight_decay == pytest.approx(0.05, rel=1e-6)
    assert rest.settings["b2"] == pytest.approx(0.999, rel=1e-6)
    assert slow.learning_rate == pytest.approx(1e-3, rel=1e-6)
    assert slow.weight_decay is None
    recurrent = [
        f"encoder.layers_{layer}.seq.{name}" for layer in (0, 1) for name in ("Lambda_im", "Lambda_re", "log_step")
    ]
    assert slow.parameters == tuple(recurrent)
    assert (slow.count, rest.count, slow.note) == (6, 8, "")
    result = diagnose(tmp_path / "1000")
    assert not {finding.rule.code for finding in result.findings} & {"SSM501", "SSM502"}


def test_what_flax_wrote_without_settings_is_a_group_with_names(tmp_path: Path) -> None:
    (tmp_path / "m.msgpack").write_bytes(S5_TRAIN_STATE)
    checkpoint = read_checkpoint(tmp_path / "m.msgpack")
    (group,) = checkpoint.optimizer_groups
    assert set(group.parameters or ()) == set(checkpoint)
    assert (group.learning_rate, group.weight_decay) == (None, None)
    assert group.note.startswith("optax's state gives no settings")


def test_chains_wrappers_and_masks_are_looked_through(tmp_path: Path) -> None:
    every = ("layers_0.A_log", "layers_0.D", "head.kernel")
    assert groups({"0": {}, "1": {"0": ADAM, "1": {}, "2": {"count": 3}}}, tmp_path) == [(None, None, every, 3)]
    hyper = {"learning_rate": torch.tensor(0.25), "weight_decay": 0.5, "odd": None}
    assert groups({"hyperparams": hyper, "inner_state": {"0": ADAM}}, tmp_path) == [(0.25, 0.5, every, 3)]
    masked = {"layers_0": {"A_log": PARAMS["layers_0"]["A_log"], "D": {}}, "head": {}}
    labels = {
        "slow": {"inner_state": {"hyperparams": {"learning_rate": 0.125}, "inner_state": {"0": {"mu": masked}}}},
        "none": {"inner_state": {}},
    }
    assert groups({"inner_states": labels}, tmp_path) == [(0.125, None, ("layers_0.A_log",), 1)]
    assert groups({"0": {"trace": PARAMS}}, tmp_path) == [(None, None, every, 3)]


@pytest.mark.parametrize(
    "state", [{}, [], 3, {"mu": 3}, {"inner_states": {}}, {"inner_states": 7}, {"hyperparams": {"learning_rate": 1.0}}]
)
def test_a_state_without_moments_is_no_group(state: Any, tmp_path: Path) -> None:
    assert groups(state, tmp_path) == []


def test_an_average_of_other_parameters_names_none_of_these(tmp_path: Path) -> None:
    assert groups({"mu": {"other": {"w": torch.ones(2)}}}, tmp_path) == [(None, None, None, 1)]
