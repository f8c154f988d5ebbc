"""RWKV-5, Eagle (Peng et al., 2024, arXiv 2404.05892): a matrix memory per head, with a fixed decay.

    S_t = diag(w) S_{t−1} + k_tᵀ v_t

| paper | tensor | shape | role |
|---|---|---|---|
| w | `time_decay` | head, key (5.2) or head (5.0, 5.1) | λ̄ = exp(−exp(time_decay)), the same at every token |
| u | `time_faaaa` or `time_first` | as time_decay | bonus of the present token; not part of the memory |

Copies that the `rwkv` package converted (0.8.32, model.py:796-814) hold λ̄ itself, rounded to float32, with a third
axis of length 1; their matrices are transposed.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering
from ssmdiag.families.layouts import flat, transposed
from ssmdiag.recurrence.discretisation import log_of

_LATER = ("time_decay_w1",)
CONVERTED = "the rwkv package, converted"


def read(layer: Layer) -> Iterator[Recurrence]:
    if layer.spelling.name == CONVERTED:
        factor = layer["time_decay"][:, :, 0]
        layer.weight("time_decay", "none", part=factor.abs(), discrete=True)
        layer.note("converted by the rwkv package: decays are rounded to float32 as factors, 1 − λ̄ to 6e-8")
        yield layer.recurrence(log_of(factor))
        return
    rate = layer.weight("time_decay", "exp")
    yield layer.recurrence(-rate.reshape(rate.shape[0], -1))


def steering(layer: Layer) -> Iterator[Steering]:
    layout = transposed if layer.spelling.name == CONVERTED else None
    for role in ("key", "value", "receptance"):
        yield Steering(role, f"{role}.weight", layout)
        yield Steering(f"token shift of the {role}", f"time_mix_{role[0]}", flat)


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
        Spelling(CONVERTED, {"time_first": "head key 1", "time_decay": "head key 1"}, absent=_LATER),
    ),
    repositories=("BlinkDL/RWKV-LM",),
    read=read,
    steering=steering,
    caveat="The decay is the same at every token; what is written and read depends on the input.",
)
