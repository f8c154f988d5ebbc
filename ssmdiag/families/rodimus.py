"""Rodimus (He et al., 2024, arXiv 2410.06577): a matrix memory whose decay has a temperature.

    S_t = diag(α_t) S_{t−1} + (g_t^{τ_t} ⊙ k_t) v_tᵀ,    α_t = exp(−g_t ⊙ τ_t)
    g_t = softplus(W_g x_t + b_g),    τ_t = σ(W_τ x_t + b_τ)

| paper | tensor | shape | role |
|---|---|---|---|
| b_g | `g_gate_proj.bias` | key channel | the rate, read at the bias |
| b_τ | `tau_gate_proj.bias` | key channel | the temperature, a factor from 0 to 1 on the rate |
| – | `i_gate_proj.1.bias`, `residual_weight` | channel | gate and residual of the value; only their shapes are used |

The gates read the layer's input behind `up_proj` and a short convolution with a bias, so their bias is not zero input.
Source: fla-org/flash-linear-attention bc3b101, fla/layers/rodimus.py:150-178.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import convolve, softplus
from ssmdiag.recurrence.clock import Clock


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("g_gate_proj.bias", "softplus") * layer["tau_gate_proj.bias"].sigmoid()
    yield layer.recurrence(-rate[:, None])


def clock(module: Any, input: Tensor) -> Clock:
    inner = module.up_proj(input)
    if getattr(module, "use_short_conv", True):
        inner = convolve(module.short_conv, inner)
        inner = inner * inner.sigmoid()
    step = softplus(module.g_gate_proj(inner).double()) * module.tau_gate_proj(inner).double().sigmoid()
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("decay", "g_gate_proj.weight", needed=True)
    yield Steering("temperature of the decay", "tau_gate_proj.weight", needed=True)
    yield Steering("bias of the temperature", "tau_gate_proj.bias")
    yield Steering("input", "up_proj.weight")
    yield Steering("convolution", "short_conv.weight", taps)
    yield Steering("bias of the convolution", "short_conv.bias")
    for role, name in (("query", "q_proj"), ("key", "k_proj")):
        yield Steering(role, f"{name}.weight")
    yield Steering("input gate, first factor", "i_gate_proj.0.weight")
    yield Steering("input gate, second factor", "i_gate_proj.1.weight")
    yield Steering("bias of the input gate", "i_gate_proj.1.bias")


FAMILY = Family(
    name="rodimus",
    title="Rodimus",
    paper="arXiv 2410.06577",
    memory="nominal",
    traits=frozenset({"layers alike", "matrix memory"}),
    spellings=(
        Spelling(
            "fla",
            {
                "tau_gate_proj.bias": "key",
                "g_gate_proj.bias": "key",
                "i_gate_proj.1.bias": "channel",
                "residual_weight": "channel",
            },
        ),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    clock=clock,
    steering=steering,
    caveat="The gates also see the biases of the layers before them; they are left out here.",
)
