"""HGRN (Qin, Yang & Zhong, 2023, arXiv 2311.04823) and HGRN2 (2024, arXiv 2404.07904).

    h_t = λ_t ⊙ h_{t−1} + (1 − λ_t) i_t,    λ_t = γ + (1 − γ) σ(W_f x_t)

| paper | tensor | shape | role |
|---|---|---|---|
| Γ | `lower_bounds`, of the model | layer, channel | γ of layer l is the sum of softmax(Γ) over layers 1 … l |
| W_f | `f_proj.weight` | channel, model | no bias: σ = 1/2 at zero input |

The first layer has γ = 0; later layers remember longer. HGRN2 applies λ to a matrix memory per head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock

_GATE = {"f_proj.weight": "channel _", "i_proj.weight": "_ _"}
# LSTMs of every kind use these names too, with a bias or without, but have no norm behind the output gate.
_BIASED = ("f_proj.bias", "i_proj.bias")
_NORM = "g_norm.weight"


def read(layer: Layer) -> Iterator[Recurrence]:
    bounds = layer.elsewhere("lower_bounds")
    channels = layer.axis("channel")
    if bounds is not None:
        decay = (-_distance_to_one(layer, bounds) / 2).log1p()
    elif layer.setting("use_lower_bound") is True:
        raise LayerError(
            "the model's lower_bounds tensor is missing; every decay depends on it.",
            advice="inspect the whole checkpoint, not a part of it.",
        )
    else:
        import torch

        decay = torch.full((channels,), -math.log(2), dtype=torch.float64, device=layer.device)
        layer.note("no lower bounds in the file: at zero input every decay is 1/2, whatever the weights")
    if len(decay) != channels:
        raise LayerError(
            f"lower_bounds has {len(decay)} channels, {layer.names['f_proj.weight']} {channels}.",
            expected="one bound per channel",
        )
    size = layer.setting("expand_ratio", default=0) if "q_proj.weight" in layer else 0
    by_head = decay.reshape(-1, size) if size and channels % size == 0 else decay[:, None]
    yield layer.recurrence(by_head, operating_point="zero input, where the gate is 1/2")


def _distance_to_one(layer: Layer, bounds: Tensor) -> Tensor:
    """Return 1 − γ of this layer, summed from the small end so that it keeps its digits."""
    if layer.number is None or layer.number >= len(bounds):
        raise LayerError(f"{layer.title}: no row of lower_bounds ({len(bounds)} layers) belongs to it.")
    shares = bounds.softmax(0)
    return shares[0] + shares[layer.number + 1 :].sum(0)


def clock(module: Any, input: Tensor, lower_bound: Tensor | None = None) -> Clock:
    """The model hands γ of all channels to each of its layers, and the first ignores it."""
    gate = module.f_proj(input)
    if hasattr(module, "f_conv1d"):
        gate, _ = module.f_conv1d(x=gate)
    gate = gate.double()
    step = softplus(-gate)
    if lower_bound is not None and module.layer_idx > 0:
        bound = lower_bound.double().to(gate.device)
        # −log λ, where 1 − λ = (1 − γ)(1 − σ) keeps the digits of a λ near 1.
        step = (-(-(1 - bound) * (-gate).sigmoid()).log1p()).where(bound > 0, step)
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    for role, name in (("decay", "f"), ("input", "i"), ("query", "q")):
        yield Steering(role, f"{name}_proj.weight", needed=role == "decay")
        yield Steering(f"convolution of the {role}", f"{name}_conv1d.weight", taps)


FAMILY = Family(
    name="hgrn",
    title="HGRN",
    paper="arXiv 2311.04823",
    memory="nominal",
    traits=frozenset({"gates without bias", "matrix memory"}),
    spellings=(
        Spelling("fla, HGRN2", {**_GATE, "q_proj.weight": "_ _", _NORM: "_"}, absent=_BIASED),
        Spelling("fla, HGRN", {**_GATE, _NORM: "_"}, absent=(*_BIASED, "q_proj.weight")),
        Spelling(
            "fla, HGRN2, its norm without a weight",
            {**_GATE, "q_proj.weight": "_ _"},
            absent=(*_BIASED, _NORM),
            settings={"model_type": ("hgrn2",)},
        ),
        Spelling(
            "fla, HGRN, its norm without a weight",
            _GATE,
            absent=(*_BIASED, _NORM, "q_proj.weight"),
            settings={"model_type": ("hgrn",)},
        ),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    clock=clock,
    steering=steering,
)
