"""PLaMo-2 (Preferred Networks, 2025, arXiv 2509.04897): Mamba-2's scalar decay, Δ through a low rank.

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head | A = −exp(A_log) |
| Δ bias | `dt_bias` | head | Δ = softplus(W_dt RMSNorm(r) + dt_bias) |
| – | `dt_norm_weight` | rank | RMSNorm of r; distinguishes PLaMo-2 from Mamba-2 |

Δ passes through the convolution, which has no bias: the bias of Δ is zero input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import convolve, rows, silu, softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("A_log", "exp")[:, None]
    step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    point = "the gates at their bias, as at zero input"
    yield layer.recurrence(zoh(-rate, step), step=step, operating_point=point)


def clock(module: Any, input: Tensor) -> Clock:
    heads, rank = len(module.A_log), len(module.dt_norm_weight)
    x = module.in_proj(input).unflatten(-1, (heads, 2, -1))[..., 1, :].flatten(-2)  # for each head, z and then x
    low = rows(module.bcdt_proj, silu(module, convolve(module.conv1d, x)), -rank).double()
    mean_square = low.square().mean(-1, keepdim=True) + module.config.rms_norm_eps
    normed = (module.dt_norm_weight.double() * low / mean_square.sqrt()).to(input.dtype)
    gate = module.dt_proj(normed).double() + module.dt_bias.double()
    return Clock(softplus(gate), module.A_log.double().exp()[:, None])


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("step", "dt_proj.weight", needed=True)
    yield Steering("step, B and C", "bcdt_proj.weight", needed=True)
    yield Steering("convolution", "conv1d.weight", taps)
    yield Steering("bias of the convolution", "conv1d.bias")
    yield Steering("input", "in_proj.weight")
    yield Steering("norm of the step", "dt_norm_weight")
    yield Steering("norm of B", "B_norm_weight")
    yield Steering("norm of C", "C_norm_weight")


FAMILY = Family(
    name="plamo2",
    title="PLaMo-2",
    paper="arXiv 2509.04897",
    memory="nominal",
    traits=frozenset({"layers alike", "undecayed skip"}),
    spellings=(
        Spelling(
            "pfnet/plamo-2",
            {"dt_norm_weight": "rank", "A_log": "head", "dt_bias": "head", "D": "_"},
            optional={"bcdt_proj.weight": "_ _", "dt_proj.weight": "_ _"},
        ),
    ),
    read=read,
    clock=clock,
    steering=steering,
)
