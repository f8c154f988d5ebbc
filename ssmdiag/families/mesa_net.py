"""MesaNet (von Oswald et al., 2025, arXiv 2506.05233): keys and values in two decaying stores, read by a solver.

    G_t = γ_t G_{t−1} + β_t k_t k_tᵀ,    H_t = γ_t H_{t−1} + β_t v_t k_tᵀ,    o_t = H_t (G_t + diag λ)⁻¹ q_t

| paper | tensor | shape | role |
|---|---|---|---|
| γ | `a_proj.bias` | head | log γ = log σ(W_a x + b), read at the bias |
| λ | `lambda_params` | head × key | regulariser of the solver, softplus(w) + 1/4: no decay; only its name is used |

Source: fla-org/flash-linear-attention bc3b101, fla/layers/mesa_net.py:98-107, 168-172.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, ForwardSetting, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("a_proj.bias", "-logsigmoid")
    yield layer.recurrence(-rate[:, None], operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    step = softplus(-module.a_proj(input).double())
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("decay", "a_proj.weight", needed=True)
    yield Steering("write strength", "b_proj.weight", needed=True)
    yield Steering("bias of the write strength", "b_proj.bias")
    yield Steering("regulariser", "lambda_params")
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(f"convolution of the {role}", f"{role[0]}_conv1d.weight", taps)
        yield Steering(f"bias of the convolution of the {role}", f"{role[0]}_conv1d.bias")


FAMILY = Family(
    name="mesa_net",
    title="MesaNet",
    paper="arXiv 2506.05233",
    memory="nominal",
    traits=frozenset({"float32 decay", "layers alike", "matrix memory"}),
    spellings=(
        Spelling("fla", {"lambda_params": "head*key", "a_proj.bias": "head"}, {"b_proj.bias": "head"}, ("A_log",)),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ForwardSetting(("lambda_lower_bound",), usual=0.25, meaning="the least regulariser of the solver"),),
    caveat="What is read is the least-squares fit of all that is stored; the decay is that of both stores.",
)
