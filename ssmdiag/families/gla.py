"""Gated linear attention (Yang et al., 2023, arXiv 2312.06635), with its per-head and slot variants.

    S_t = diag(α_t) S_{t−1} + k_tᵀ v_t,    α_t = σ(W₂ W₁ x_t + b)^{1/τ}

| paper | tensor | shape | role |
|---|---|---|---|
| b | `gk_proj.1.bias` | key channel | log α = log σ(b) / τ |
| b | `gk_proj.bias` | head | the same with one gate per head (simple GLA) |
| – | `f_proj.weight` | head × slot, model | gated slot attention: no bias, so α = 2^{−1/τ} at zero input |

τ and a lower bound on log α (`clamp_min`) are only in config.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Option, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock


def read(layer: Layer) -> Iterator[Recurrence]:
    slots = "f_proj.weight" in layer
    # fla's model of type gla does not hand it on (bc3b101, fla/models/gla/modeling_gla.py:66-83): its layers use 16.
    known = "16" if layer.setting("model_type") == "gla" else None
    configured = layer.setting("gate_logit_normalizer")
    if known and configured not in (None, 16):
        layer.note(f"config.json gives gate_logit_normalizer = {configured}, which fla's model ignores: read with 16")
    temperature = float(layer.option("gate_logit_normalizer", usual="8" if slots else "16", known=known))
    if temperature <= 0:
        raise LayerError(f"{layer.title}: gate_logit_normalizer is {temperature:g}.", expected="a positive number")
    if slots:
        import torch

        slot = -math.log(2) / temperature
        decay = torch.full(layer.shape("f_proj.weight")[:1], slot, dtype=torch.float64, device=layer.device)
        layer.note("the gate has no bias: at zero input it is 1/2, whatever the weights")
    else:
        bias = "gk_proj.bias" if "gk_proj.bias" in layer else "gk_proj.1.bias"
        decay = -layer.weight(bias, "-logsigmoid") / temperature
    floor = layer.setting("clamp_min")
    if isinstance(floor, (int, float)):
        decay = decay.clamp(min=float(floor))
    heads = layer.setting("num_kv_heads", "num_heads", default=0)
    per_channel = "gk_proj.bias" not in layer and heads and len(decay) % heads == 0
    decay = decay.reshape(heads, -1) if per_channel else decay[:, None]
    yield layer.recurrence(decay, operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    gate = (module.f_proj if hasattr(module, "f_proj") else module.gk_proj)(input).double()
    step = softplus(-gate) / module.gate_logit_normalizer
    floor = getattr(module, "clamp_min", None)
    if floor is not None:
        step = step.clamp(max=-floor)
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    if "gk_proj.1.bias" in layer:
        yield Steering("decay, first factor", "gk_proj.0.weight", needed=True)
        yield Steering("decay, second factor", "gk_proj.1.weight", needed=True)
    else:
        yield Steering("decay", "f_proj.weight" if "f_proj.weight" in layer else "gk_proj.weight", needed=True)
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(f"bias of the {role}", f"{role[0]}_proj.bias")
        yield Steering(f"convolution of the {role}", f"{role[0]}_conv1d.weight", taps)


FAMILY = Family(
    name="gla",
    title="Gated linear attention",
    paper="arXiv 2312.06635",
    memory="nominal",
    traits=frozenset({"float32 decay", "matrix memory"}),
    spellings=(
        Spelling("fla, GLA", {"gk_proj.1.bias": "channel"}),
        Spelling("fla, simple GLA", {"gk_proj.bias": "head"}, absent=("A_log",)),
        Spelling("fla, gated slot attention", {"f_proj.weight": "_ _"}, settings={"model_type": ("gsa",)}),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    clock=clock,
    steering=steering,
    options=(
        Option(
            "gate_logit_normalizer",
            ("16", "8", "1"),
            usual="16",
            meaning="τ in the decay σ(gate)^{1/τ}",
            number=True,
        ),
    ),
)
