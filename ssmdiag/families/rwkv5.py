"""RWKV-5, Eagle (Peng et al., 2024, arXiv 2404.05892): a matrix memory per head, with a fixed decay.

    S_t = diag(w) S_{t−1} + k_tᵀ v_t

| paper | tensor | shape | role |
|---|---|---|---|
| w | `time_decay` | head, key (5.2) or head (5.0, 5.1) | λ̄ = exp(−exp(time_decay)), the same at every token |
| u | `time_faaaa` or `time_first` | as time_decay | bonus of the present token; not part of the memory |

Copies converted by the `rwkv` package hold λ̄ itself, with a third axis of length 1; they are not read.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering

_LATER = ("time_decay_w1",)


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("time_decay", "exp")
    yield layer.recurrence(-rate.reshape(rate.shape[0], -1))


def steering(layer: Layer) -> Iterator[Steering]:
    for role in ("key", "value", "receptance"):
        yield Steering(role, f"{role}.weight")
        yield Steering(f"token shift of the {role}", f"time_mix_{role[0]}")


FAMILY = Family(
    name="rwkv5",
    title="RWKV-5",
    paper="arXiv 2404.05892",
    memory="exact",
    traits=frozenset({"float32 decay", "matrix memory"}),
    spellings=(
        Spelling("RWKV-5.2", {"time_faaaa": "head key", "time_decay": "head key"}, absent=_LATER),
        Spelling("RWKV-5.1", {"time_faaaa": "head", "time_decay": "head"}, absent=_LATER),
        Spelling("RWKV-5.0", {"time_first": "head", "time_decay": "head", "ln_x.weight": "_"}, absent=_LATER),
    ),
    read=read,
    steering=steering,
    caveat="The decay is the same at every token; what is written and read depends on the input.",
)
