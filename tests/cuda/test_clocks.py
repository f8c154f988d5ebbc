"""Clocks of layers on a GPU: on the layer's own device, and the same as on the CPU."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from ssmdiag.probing.clocks import observing
from ssmdiag.recurrence.clock import Clock
from tests.cuda.conftest import slow_but
from tests.cuda.same import SINGLE, TOLERANCE, assert_same
from tests.families.tiny_transformers import tiny_model
from tests.probing import originals
from tests.probing.originals import Stack, drawn
from tests.probing.test_clocks import ORIGINALS, TYPES


def clocks(model: nn.Module, *inputs: Tensor, **named: object) -> list[Clock]:
    found: list[Clock] = []
    with torch.no_grad(), observing(model, lambda _, clock: found.append(clock)) as observed:
        model(*inputs, **named)
    assert not observed.without_clock
    return found


def assert_same_clocks(away: list[Clock], home: list[Clock], *, tolerance: float = TOLERANCE) -> None:
    assert len(away) == len(home) > 0
    for one, other in zip(away, home, strict=True):
        assert one.step.is_cuda
        assert one.rate.is_cuda
        assert_same([one.step, one.rate], [other.step, other.rate], tolerance=tolerance)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow_but(name, "fla RWKV-6", "fla HGRN")) for name in ORIGINALS]
)
def test_clocks_of_the_originals(name: str, cuda: str) -> None:
    home = drawn(ORIGINALS[name][1]())
    away = deepcopy(home).to(cuda)
    input = torch.randn(2, 5, originals.WIDTH, dtype=torch.float64)
    assert_same_clocks(clocks(away, input.to(cuda)), clocks(home, input))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_clocks_of_transformers(model_type: str, cuda: str) -> None:
    """Its layers alone: not every part of every model can be run on a pretended GPU."""
    home = tiny_model(model_type, **TYPES[model_type])
    inputs: dict[str, Tensor] = {}
    tokens = torch.randint(3, 64, (2, 12))
    with torch.no_grad(), observing(home, lambda layer, _: None) as observed:
        for layer in observed.layers:
            layer.module.register_forward_pre_hook(
                lambda _, given, named, name=layer.name: inputs.update({name: next(iter([*given, *named.values()]))}),
                with_kwargs=True,
            )
        home.float()(tokens, use_cache=False)
    for layer in observed.layers:
        away = deepcopy(layer.module).to(cuda)
        with torch.no_grad():
            one, other = (
                layer.compute(away, inputs[layer.name].to(cuda)),
                layer.compute(layer.module, inputs[layer.name]),
            )
        assert_same_clocks([one], [other], tolerance=SINGLE)  # the layers' own weights are float32


class MovesItsInput(originals.MinGRU):
    """A layer on another device than the layer before it, as accelerate spreads a model."""

    def forward(self, input: Tensor, **given: object) -> Tensor:
        return super().forward(input.to(self.to_hidden_and_gate.weight.device), **given).to(input.device)


def test_each_clock_is_on_the_device_of_its_layer(cuda: str) -> None:
    model = drawn(Stack(MovesItsInput))
    input = torch.randn(2, 5, originals.WIDTH, dtype=torch.float64)
    home = clocks(model, input)
    model.layers[1].to(cuda)
    spread = clocks(model, input)
    assert not spread[0].step.is_cuda
    assert_same_clocks(spread[1:], home[1:])
