"""Zamba-1 (Glorioso et al., 2024, arXiv 2405.16712): Mamba-1 in several heads, each with its own B, C and Δ.

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head, channel, mode | A = −exp(A_log) |
| Δ bias | `dt_proj_bias` | head, channel | Δ = softplus(W_dt r + bias) |

Heads are independent, so they are concatenated along the channels. Decay per token exp(Δ_t A), as in
Mamba-1; the bias of the convolution moves Δ even at zero input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.forward import ACTIVATION
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import convolve, silu, softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("A_log", "exp").flatten(0, 1)
    step = layer.weight("dt_proj_bias", "softplus", role="step").flatten()[:, None]
    if "conv1d.bias" in layer:
        layer.note("at zero input Δ differs from its bias: a bias before x_proj reaches it")
    yield layer.recurrence(zoh(-rate, step), step=step)


def clock(module: Any, input: Tensor) -> Clock:
    heads, _, rank = module.dt_proj_weight.shape
    x = module.in_proj(input)[..., ::2]  # x and the gate z alternate
    by_head = silu(module, convolve(module.conv1d, x)).unflatten(-1, (heads, -1)).transpose(1, 2)
    low = by_head @ module.x_proj_weight[:, :rank].transpose(1, 2)  # (batch, head, time, rank)
    gate = (low @ module.dt_proj_weight.transpose(1, 2)).double() + module.dt_proj_bias.double()[:, None]
    return Clock(softplus(gate).transpose(1, 2).flatten(2), module.A_log.double().exp().flatten(0, 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("step", "dt_proj_weight", needed=True)
    yield Steering("step, B and C", "x_proj_weight", needed=True)
    yield Steering("convolution", "conv1d.weight", taps)
    yield Steering("bias of the convolution", "conv1d.bias")
    yield Steering("input", "in_proj.weight", _input_rows)
    yield Steering("bias of the input", "in_proj.bias", _input_rows)


def _input_rows(rows: Tensor, layer: Layer) -> Tensor:
    """Return the rows of in_proj that make x; they alternate with those of the gate z."""
    return rows[::2]


FAMILY = Family(
    name="zamba",
    title="Zamba-1",
    paper="arXiv 2405.16712",
    memory="nominal",
    traits=frozenset({"float32 decay", "layers alike", "undecayed skip"}),
    spellings=(
        Spelling(
            "transformers",
            {"A_log": "head channel mode", "dt_proj_bias": "head channel"},
            optional={"dt_proj_weight": "head channel _", "x_proj_weight": "head _ channel", "conv1d.bias": "_"},
        ),
    ),
    model_types=("zamba",),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ACTIVATION,),
)
