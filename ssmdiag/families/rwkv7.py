"""RWKV-7, Goose (Peng et al., 2025, arXiv 2503.14456): a matrix memory with vector decay and a delta rule.

    S_t = S_{t−1} (diag(w_t) − κ_tᵀ (a_t ⊙ κ_t)) + v_tᵀ k_t,    w_t = exp(−e^{−1/2} σ(w₀ + tanh(x_t W₁) W₂))

| paper | tensor | shape | role |
|---|---|---|---|
| w₀ | `w0`, fla: `w_lora.lora.2.bias` | head × key | gate where tanh(…) is 0 |
| r_k | `r_k` | head, key | gives the number of heads |
| w₀ | llama.cpp: `time_mix_w0.weight` | head × key | the same; `wkv.head_size` in the metadata gives the heads |

llama.cpp's names are those of RWKV's own code after `time_mix_`, its factors are transposed, and the mixes for
r, w, k, v, a, g are one tensor (ggml-org/llama.cpp 32e9e04, conversion/rwkv.py:170-237).
The log-decay lies between −e^{−1/2} and 0 by construction: no channel forgets faster than w = 0.545.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import by_head, flat, mix, transposed
from ssmdiag.families.submodules import token_shift
from ssmdiag.recurrence.clock import Clock

FASTEST = math.exp(-0.5)
"""Largest rate, in nats per step."""


def read(layer: Layer) -> Iterator[Recurrence]:
    decay = next(name for name in ("w0", "w_lora.lora.2.bias", "time_mix_w0.weight") if name in layer)
    gate = layer.weight(decay, "sigmoid")
    gate = gate.reshape(layer.shape("r_k")) if "r_k" in layer else by_head(gate, layer)
    yield layer.recurrence(-FASTEST * gate, operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    mixed = input + token_shift(input) * module.x_w
    gate = module.w_lora(mixed) if hasattr(module, "w_lora") else module.w0 + (mixed @ module.w1).tanh() @ module.w2
    step = gate.double().sigmoid()
    return Clock(step, step.new_full((step.shape[-1], 1), FASTEST))


def steering(layer: Layer) -> Iterator[Steering]:
    # The first layer makes the value that later ones mix in: its own v is not used, and some files copy a into it.
    mixed = () if layer.number == 0 else (("value residual", "v"),)
    for role, name in (("decay", "w"), ("removal", "a"), *mixed):
        for factor, number in (("first", 1), ("second", 2)):
            needed = role == "decay"
            yield Steering(f"{role}, {factor} factor", f"{name}{number}", transposed, needed=needed)
            yield Steering(f"{role}, {factor} factor", f"{name}_lora.lora.{2 * (number - 1)}.weight")
            yield Steering(f"{role}, {factor} factor", f"time_mix_{name}{number}.weight")
    for role, name in (("removal", "a"), *mixed):
        yield Steering(f"bias of the {role}", f"{name}0", flat)
        yield Steering(f"bias of the {role}", f"{name}_lora.lora.2.bias")
        yield Steering(f"bias of the {role}", f"time_mix_{name}0.weight", flat)
    for role in ("receptance", "key", "value"):
        yield Steering(role, f"{role}.weight")
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(role, f"time_mix_{role}.weight")
    for name in ("k_k", "k_a"):
        yield Steering(name, name, flat)
        yield Steering(name, f"time_mix_{name}.weight", flat)
    for name in "wkvar":
        yield Steering(f"token shift {name}", f"x_{name}", flat)
        part = "rwkva".index(name)
        yield Steering(f"token shift {name}", "time_mix_lerp_fused.weight", partial(mix, part=part))
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
        Spelling("llama.cpp", {"time_mix_w0.weight": "channel", "time_mix_k_k.weight": "channel"}),
    ),
    repositories=(
        "BlinkDL/RWKV-LM",
        "fla-org/flash-linear-attention",
    ),
    gguf=("rwkv7",),
    read=read,
    clock=clock,
    steering=steering,
    caveat="Along the key that is removed (κ) the memory is overwritten too, so the decay bounds it from above.",
)
