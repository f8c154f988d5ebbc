"""Modules that have the names of a recurrence and are another thing: none is read, and the true ones still are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ssmdiag import read_state_dict, recognise
from ssmdiag.families.recognition import Recognition

Shapes = dict[str, tuple[int, ...]]

LOOKALIKES: dict[str, Shapes] = {
    "a rational fit in poles and residues": {"poles": (6, 4, 1, 2), "residues": (6, 4, 1, 2), "D": (6,), "E": (6,)},
    "a real one": {"log_poles": (6, 4, 1), "residues": (6, 4), "D": (6,)},
    "a gate and its temperature": {
        **{f"{gate}_gate_proj.weight": (4, 4) for gate in ("g", "tau")},
        **{f"{gate}_gate_proj.bias": (4,) for gate in ("g", "tau")},
    },
    "a stencil with a constant of diffusion": {"kernel": (1, 4, 9), "D": (1, 4)},
    "a layer of flax with a D": {"kernel": (3, 4, 4), "D": (3, 4), "bias": (4,)},
    "a cell with a second gate of its own": {"weight_ih": (4, 3), "weight_hh": (4, 4), "weight_iz": (4, 3)},
    "an LSTM with peepholes": {"weight_ih": (16, 3), "weight_hh": (16, 4), "weight_ch": (12,)},
    "an LSTM in projections without a bias": {f"{name}_proj.weight": (4, 6) for name in "ifgo"},
    "an mLSTM in projections without a bias": {f"{name}_proj.weight": (4, 4) for name in "qkvifo"},
    "a convolution with a bias": {"sconv.weight": (4, 1, 7), "sconv.bias": (4,)},
    "a strided convolution": {"sconv.conv1d.weight": (4, 1, 7)},
}  # fmt: skip


def recognised(state: dict[str, torch.Tensor]) -> Recognition:
    return recognise(read_state_dict(state))


@pytest.mark.parametrize("shapes", LOOKALIKES.values(), ids=LOOKALIKES)
def test_a_lookalike_is_not_read(shapes: Shapes) -> None:
    for path in ("net.layers.0.", ""):
        found = recognised({f"{path}{name}": torch.randn(shape) for name, shape in shapes.items()})
        assert not found.layers
        assert not found.problems


def test_a_weight_in_float64_is_the_curse_of_memorys_only_where_it_is_alone() -> None:
    alone = {"rnn.W.weight": torch.rand(4, dtype=torch.float64)}
    assert [layer.family.name for layer in recognised(alone).layers] == ["curse_of_memory"]
    for other in ("U.weight", "b", "norm.bias"):
        assert not recognised(alone | {f"rnn.{other}": torch.rand(4, dtype=torch.float64)}).layers
    coupled = alone | {"rnn.P.weight": torch.eye(4, dtype=torch.float64)}
    assert len(recognised(coupled).layers) == 1
    assert not recognised(coupled | {"rnn.U.weight": torch.rand(4, dtype=torch.float64)}).layers


def test_a_cell_that_is_part_of_a_larger_module_is_still_a_cell() -> None:
    class Tagger(nn.RNNCell):
        def __init__(self) -> None:
            super().__init__(3, 4)
            self.head = nn.Linear(4, 2)

    state = Tagger().state_dict()
    assert [layer.family.name for layer in recognised(state).layers] == ["rnn"]
    state |= {"weight_hh_scale": torch.ones(4)}  # what a quantised weight comes with
    assert len(recognised(state).layers) == 1
