"""minGRU and minLSTM (Feng et al., 2024, arXiv 2410.01201), as in lucidrains/minGRU-pytorch.

    h_t = (1 − z_t) ⊙ h_{t−1} + z_t ⊙ g(h̃_t),    z_t = σ(W_z x_t);    minLSTM: f′ = f/(f + i) for 1 − z

| paper | tensor | shape | role |
|---|---|---|---|
| W_h, W_z | `to_hidden_and_gate.weight` | 2 × channel, model | candidate, then gate |
| W_h, W_f, W_i | `to_hidden_and_f_i_gate.weight` | 3 × channel, model | candidate, forget and input gate |

There is no bias, so the decay at zero input is 1/2 in every channel. That says nothing about what was
learnt, which is only in the gate's response to the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.submodules import rows, softplus
from ssmdiag.recurrence.clock import Clock


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    layer.note("the gate has no bias: at zero input every decay is 1/2, whatever the weights")
    decay = torch.full((layer.axis("channel"), 1), -math.log(2), dtype=torch.float64, device=layer.device)
    yield layer.recurrence(decay, operating_point="zero input, where the gate is 1/2")


def clock(module: Any, input: Tensor) -> Clock:
    if hasattr(module, "to_hidden_and_gate"):
        linear = module.to_hidden_and_gate
        step = softplus(rows(linear, input, linear.out_features // 2).double())
    else:
        linear = module.to_hidden_and_f_i_gate
        forget, take = rows(linear, input, linear.out_features // 3).double().chunk(2, -1)
        step = softplus(softplus(-forget) - softplus(-take))
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("candidate and gates", layer.spelling.telltale, needed=True)


FAMILY = Family(
    name="min_gru",
    title="minGRU, minLSTM",
    paper="arXiv 2410.01201",
    memory="nominal",
    traits=frozenset({"gates without bias"}),
    spellings=(
        Spelling("minGRU", {"to_hidden_and_gate.weight": "2*channel _"}),
        Spelling("minLSTM", {"to_hidden_and_f_i_gate.weight": "3*channel _"}),
    ),
    repositories=("lucidrains/minGRU-pytorch",),
    read=read,
    clock=clock,
    steering=steering,
)
