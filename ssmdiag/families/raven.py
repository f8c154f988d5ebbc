"""Raven (fla-org/flash-linear-attention bc3b101, fla/layers/raven.py:160-315): slots that decay as they are chosen.

    S_{t,m} = e^{f_t w_{t,m}} S_{t−1,m} + (1 − e^{f_t w_{t,m}}) k_t v_tᵀ,    f_t = −A softplus(W_a x_t + b_a)

| in the code | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head | A = exp(A_log), one rate per key head |
| b_a | `dt_bias` | head | read at the bias |
| w | `r_proj.weight`, or `r_proj.2.weight` | head × slot, model | router: the best `topk` slots get weights |
| f | `f_proj.weight` | head × slot, model | with the other gate, f = log σ(W_f x) / τ: no bias |

What is read is f, the decay of a slot that the router gives its whole weight: none forgets faster, and most do not
forget at that token at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, ForwardSetting, Layer, Option, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.submodules import softplus
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import zoh

_POINT = "the gates at their bias, of a slot that the router gives its whole weight"


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    router = "r_proj.weight" if "r_proj.weight" in layer else "r_proj.2.weight"
    rows = layer.shape(router)[0]
    if "A_log" not in layer:
        temperature = float(layer.option("gate_logit_normalizer"))
        if temperature <= 0:
            raise LayerError(f"{layer.title}: gate_logit_normalizer is {temperature:g}.", expected="a positive number")
        layer.note("the gate has no bias: at zero input it is 1/2, whatever the weights")
        decay = torch.full((rows, 1), -math.log(2) / temperature, dtype=torch.float64, device=layer.device)
        yield layer.recurrence(decay, operating_point=_POINT)
        return
    rate = layer.weight("A_log", "exp")[:, None]
    step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    if rows % len(rate):
        raise LayerError(
            f"{layer.names[router]} has {rows} rows, A_log says {len(rate)} heads.", expected="as many for each head"
        )
    slots = rows // len(rate)
    yield layer.recurrence(zoh(-rate, step).expand(-1, slots), step=step, operating_point=_POINT)


def clock(module: Any, input: Tensor) -> Clock:
    """In evaluation mode: in training the choice of slots is random."""
    import torch

    slots = module.num_slots
    router = module.r_proj(input).double().unflatten(-1, (-1, slots))
    scores = router.sigmoid() if module.router_score == "sigmoid" else router.softmax(-1)
    ranked = scores + module.r_bias.double() if getattr(module, "bias_rmm", False) else scores
    chosen = ranked.topk(module.topk, dim=-1).indices
    weights = torch.gather(scores, -1, chosen)
    if module.router_score == "sigmoid":
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-9)
    whole = torch.zeros_like(router).scatter(-1, chosen, weights)
    if hasattr(module, "A_log"):
        step = softplus(module.a_proj(input).double() + module.dt_bias.double())[..., None] * whole
        rate = module.A_log.double().exp().repeat_interleave(slots)
    else:
        step = softplus(-module.f_proj(input).double()) / module.gate_logit_normalizer
        step = step.unflatten(-1, (-1, slots)) * whole
        rate = step.new_ones(step.shape[-2] * slots)
    return Clock(step.flatten(-2), rate[:, None])


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("decay", "a_proj.weight" if "A_log" in layer else "f_proj.weight", needed=True)
    for name in ("r_proj.weight", "r_proj.2.weight"):
        yield Steering("router", name, needed=True)
    yield Steering("router, first layer", "r_proj.0.weight")
    yield Steering("bias of the router, first layer", "r_proj.0.bias")
    yield Steering("bias of the router", "r_bias")
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(f"feature map of the {role}", f"{role[0]}_norm.weight")


_GATE = {"A_log": "head", "dt_bias": "head", "a_proj.weight": "head _"}

FAMILY = Family(
    name="raven",
    title="Raven",
    paper="github.com/fla-org/flash-linear-attention",
    memory="nominal",
    traits=frozenset({"float32 decay", "gates without bias", "layers alike", "matrix memory"}),
    spellings=(
        Spelling("fla", {"r_proj.weight": "_ _", **_GATE}),
        Spelling("fla, router of two layers", {"r_proj.2.weight": "_ _", **_GATE}),
        Spelling(
            "fla, gate of GLA",
            {"r_proj.weight": "rows _", "f_proj.weight": "rows _"},
            absent=("A_log",),
            settings={"model_type": ("raven",)},
        ),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    clock=clock,
    steering=steering,
    forward=(ForwardSetting(("topk",), usual=32, meaning="how many slots a token writes to"),),
    options=(
        Option("gate_logit_normalizer", ("8", "16"), usual="8", meaning="τ in the decay σ(gate)^{1/τ}", number=True),
    ),
    caveat="A slot decays only as far as the router chooses it, so that slots can hold for longer than this.",
)
