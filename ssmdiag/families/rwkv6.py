"""RWKV-6, Finch (Peng et al., 2024, arXiv 2404.05892): RWKV-5 with a decay that depends on the token.

    S_t = diag(w_t) S_{t−1} + k_tᵀ v_t,    w_t = exp(−exp(d + tanh(x_t W₁) W₂))

| paper | tensor | shape | role |
|---|---|---|---|
| d | `time_decay`, fla: `w_proj.linear.lora.2.bias` | head × key | log of the rate where tanh(…) is 0 |
| W₁ | `time_decay_w1` | any | makes the decay depend on the token; only its name is used |
| u | `time_faaaa`, fla: `bonus` | head, key | gives the number of heads |

llama.cpp (ggml-org/llama.cpp 32e9e04, conversion/rwkv.py:44-83) has d as it is in `time_mix_decay.weight`, u in
`time_mix_first.weight`, the factors transposed and the mixes for w, k, v, r, g in one tensor. Copies that the `rwkv`
package converted (0.8.32, model.py:796-814) have d and u as (head, key, 1), and the large matrices transposed.
Release candidates of RWKV-7 (`time_aaaaa` beside d) have these names and other decays: they are not RWKV-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import by_head, flat, mix, transposed
from ssmdiag.families.submodules import token_shift
from ssmdiag.recurrence.clock import Clock


def read(layer: Layer) -> Iterator[Recurrence]:
    decay = next(name for name in ("time_decay", "time_mix_decay.weight", "w_proj.linear.lora.2.bias") if name in layer)
    bonus = next((name for name in ("time_faaaa", "time_first", "bonus") if name in layer), "time_mix_first.weight")
    rate = layer.weight(decay, "exp")
    rate = rate.reshape(layer.shape(bonus)[:2]) if bonus in layer else by_head(rate, layer)
    yield layer.recurrence(-rate, operating_point="the gates at their bias, as at zero input")


def clock(module: Any, input: Tensor) -> Clock:
    shift = token_shift(input)
    if hasattr(module, "w_proj"):  # fla: mixes for r, w, k, v, g
        low = module.x_proj[1](module.x_proj[0](input, shift)).unflatten(-1, (5, -1))[..., 1, :]
        mix = low @ module.x_proj[2].weight.unflatten(1, (5, -1))[:, 1].T + module.x_bias[1]
        gate = module.w_proj(input, mix, shift)
    else:  # mixes for w, k, v, r, g
        low = ((input + shift * module.time_maa_x) @ module.time_maa_w1).tanh().unflatten(-1, (5, -1))[..., 0, :]
        mixed = input + shift * (module.time_maa_w + low @ module.time_maa_w2[0])
        gate = module.time_decay + (mixed @ module.time_decay_w1).tanh() @ module.time_decay_w2
    step = gate.double().exp()
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("decay, first factor", "time_decay_w1", transposed, needed=True)
    yield Steering("decay, second factor", "time_decay_w2", transposed, needed=True)
    yield Steering("decay, first factor", "w_proj.linear.lora.0.weight")
    yield Steering("decay, second factor", "w_proj.linear.lora.2.weight")
    yield Steering("decay, first factor", "time_mix_decay_w1.weight")
    yield Steering("decay, second factor", "time_mix_decay_w2.weight")
    for role in ("receptance", "key", "value"):
        yield Steering(role, f"{role}.weight", transposed if "time_first" in layer else None)
        yield Steering(role, f"{role[0]}_proj.linear.weight")
        yield Steering(role, f"time_mix_{role}.weight")
        yield Steering(f"bias of the {role}", f"time_mix_{role}.bias")
    # The token shift mixes this token with the one before, for all of them.
    for part, name in enumerate("wkvr"):
        yield Steering(f"token shift {name}", f"time_maa_{name}", flat)
        yield Steering(f"token shift {name}", "time_mix_lerp_fused.weight", partial(mix, part=part))
        yield Steering(f"token shift {name}", f"time_mix_lerp_{name}.weight", flat)
    yield Steering("token shift x", "time_maa_x", flat)
    yield Steering("token shift x", "time_mix_lerp_x.weight", flat)
    for name in ("w1", "w2"):
        yield Steering(f"token shift {name}", f"time_maa_{name}")
        yield Steering(f"token shift {name}", f"time_mix_{name}.weight", _last_axes_swapped)
    for name in ("x_bias", "x_proj.0.mu", "x_proj.0.linear.weight", "x_proj.2.weight"):
        yield Steering(f"token shift {name}", name)


def _last_axes_swapped(factor: Tensor, layer: Layer) -> Tensor:
    """Return a factor of the token shift as RWKV's own code stores it: llama.cpp swaps its last two axes."""
    return factor.mT if factor.ndim > 1 else factor


FAMILY = Family(
    name="rwkv6",
    title="RWKV-6",
    paper="arXiv 2404.05892",
    memory="nominal",
    traits=frozenset({"float32 decay", "matrix memory"}),
    spellings=(
        Spelling(
            "BlinkDL/RWKV-LM",
            {"time_decay_w1": "_ _", "time_decay": "1 1 head*key", "time_faaaa": "head key"},
            optional={"time_decay_w2": "_ _"},
            absent=("time_aaaaa",),
        ),
        Spelling(
            "the rwkv package, converted",
            {"time_decay_w1": "_ _", "time_decay": "head key 1", "time_first": "head key 1"},
            optional={"time_decay_w2": "_ _"},
            absent=("time_aaaaa",),
        ),
        Spelling("fla", {"w_proj.linear.lora.2.bias": "head*key", "bonus": "head key"}),
        Spelling(
            "llama.cpp",
            {"time_mix_decay.weight": "head*key", "time_mix_decay_w1.weight": "_ _"},
            optional={"time_mix_first.weight": "head key", "time_mix_decay_w2.weight": "_ _"},
        ),
    ),
    repositories=(
        "BlinkDL/RWKV-LM",
        "fla-org/flash-linear-attention",
    ),
    gguf=("rwkv6",),
    read=read,
    clock=clock,
    steering=steering,
)
