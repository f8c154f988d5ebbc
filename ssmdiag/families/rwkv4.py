"""RWKV-4 (Peng et al., 2023, arXiv 2305.13048): a decaying average of values, weighted by their keys.

    num_t = e^{−w} num_{t−1} + e^{k_t} v_t,    den_t = e^{−w} den_{t−1} + e^{k_t}

| paper | tensor | shape | role |
|---|---|---|---|
| w | `time_decay` | channel | λ̄ = exp(−exp(time_decay)), the same at every token |
| u | `time_first` | channel | bonus of the present token; not part of the memory |

The `rwkv` package can save a converted copy in which time_decay already holds −exp(time_decay) and
every time_… tensor has lost its axes of length 1: by these shapes it is recognised, and refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering

# RWKV-5.0 also has both as vectors, one value per head; only it normalises by head.
_LATER = ("ln_x.weight", "time_decay_w1")


def read(layer: Layer) -> Iterator[Recurrence]:
    if "time_mix_k" in layer and len(layer.shape("time_mix_k")) == 1:
        raise LayerError(
            f"{layer.names['time_decay']} has been converted: the rwkv package stores transformed decays.",
            advice="inspect the .pth it was converted from.",
        )
    yield layer.recurrence(-layer.weight("time_decay", "exp")[:, None])


def steering(layer: Layer) -> Iterator[Steering]:
    for role in ("key", "value", "receptance"):
        yield Steering(role, f"{role}.weight")
        yield Steering(f"token shift of the {role}", f"time_mix_{role[0]}")
        yield Steering(f"token shift of the {role}", f"time_mix_{role}")


FAMILY = Family(
    name="rwkv4",
    title="RWKV-4",
    paper="arXiv 2305.13048",
    memory="exact",
    traits=frozenset({"fast channels", "float32 decay", "matrix memory"}),
    spellings=(
        Spelling(
            "BlinkDL/RWKV-LM, transformers",
            {"time_first": "channel", "time_decay": "channel"},
            {"time_mix_k": "1 1 channel"},
            absent=_LATER,
        ),
    ),
    repositories=("BlinkDL/RWKV-LM",),
    model_types=("rwkv",),
    read=read,
    steering=steering,
    caveat="The decay is the same at every token, but what it is applied to is weighted by exp(key).",
)
