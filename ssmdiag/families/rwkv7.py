"""RWKV-7, Goose (Peng et al., 2025, arXiv 2503.14456): a matrix memory with vector decay and a delta rule.

    S_t = S_{t−1} (diag(w_t) − κ_tᵀ (a_t ⊙ κ_t)) + v_tᵀ k_t,    w_t = exp(−e^{−1/2} σ(w₀ + tanh(x_t W₁) W₂))

| paper | tensor | shape | role |
|---|---|---|---|
| w₀ | `w0`, fla: `w_lora.lora.2.bias` | head × key | gate where tanh(…) is 0 |
| r_k | `r_k` | head, key | gives the number of heads |

The log-decay lies between −e^{−1/2} and 0 by construction: no channel forgets faster than w = 0.545.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import flat, transposed
from ssmdiag.families.submodules import token_shift
from ssmdiag.recurrence.clock import Clock

FASTEST = math.exp(-0.5)
"""Largest rate, in nats per step."""


def read(layer: Layer) -> Iterator[Recurrence]:
    decay = "w0" if "w0" in layer else "w_lora.lora.2.bias"
    gate = layer.weight(decay, "sigmoid").reshape(layer.shape("r_k"))
    yield layer.recurrence(-FASTEST * gate, operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    mixed = input + token_shift(input) * module.x_w
    gate = module.w_lora(mixed) if hasattr(module, "w_lora") else module.w0 + (mixed @ module.w1).tanh() @ module.w2
    step = gate.double().sigmoid()
    return Clock(step, step.new_full((step.shape[-1], 1), FASTEST))


def steering(layer: Layer) -> Iterator[Steering]:
    for role, name in (("decay", "w"), ("removal", "a"), ("value residual", "v")):
        for factor, number in (("first", 1), ("second", 2)):
            needed = role == "decay"
            yield Steering(f"{role}, {factor} factor", f"{name}{number}", transposed, needed=needed)
            yield Steering(f"{role}, {factor} factor", f"{name}_lora.lora.{2 * (number - 1)}.weight")
    for role, name in (("removal", "a"), ("value residual", "v")):
        yield Steering(f"bias of the {role}", f"{name}0", flat)
        yield Steering(f"bias of the {role}", f"{name}_lora.lora.2.bias")
    for role in ("receptance", "key", "value"):
        yield Steering(role, f"{role}.weight")
        yield Steering(role, f"{role[0]}_proj.weight")
    for name in ("k_k", "k_a", "x_w", "x_k", "x_v", "x_a", "x_r"):
        role = f"token shift {name[-1]}" if name.startswith("x") else name
        yield Steering(role, name, flat)
    yield Steering("token shift", "x_x")


FAMILY = Family(
    name="rwkv7",
    title="RWKV-7",
    paper="arXiv 2503.14456",
    memory="nominal",
    traits=frozenset({"float32 decay", "matrix memory", "overwrites"}),
    spellings=(
        Spelling("BlinkDL/RWKV-LM", {"w0": "1 1 head*key", "r_k": "head key", "k_k": "1 1 head*key"}),
        Spelling("fla", {"w_lora.lora.2.bias": "head*key", "r_k": "head key"}),
    ),
    read=read,
    clock=clock,
    steering=steering,
    caveat="Along the key that is removed (κ) the memory is overwritten too, so the decay bounds it from above.",
)
