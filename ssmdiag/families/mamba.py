"""Mamba-1 (Gu & Dao, 2023, arXiv 2312.00752) and the models that keep its mixer.

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | channel, mode | A = −exp(A_log), one real rate per state |
| Δ bias | `dt_proj.bias` | channel | Δ = softplus(W_dt r + bias) |

Decay per token: exp(Δ_t A). It is read at the bias of Δ; the discretisation of A is exact (ZOH), that
of B is Euler's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.families.interface import Family, Spelling
from ssmdiag.recurrence import zoh

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence import Recurrence

_MIXER = {
    "A_log": "channel mode",
    "dt_proj.bias": "channel",
    "dt_proj.weight": "channel rank",
    "x_proj.weight": "_ channel",
}


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("A_log", "exp")
    step = layer.weight("dt_proj.bias", "softplus", role="step")[:, None]
    yield layer.recurrence(zoh(-rate, step), step=step)


FAMILY = Family(
    name="mamba",
    title="Mamba-1",
    paper="arXiv 2312.00752",
    memory="nominal",
    spellings=(Spelling("state-spaces/mamba, transformers, mambapy, fla", _MIXER),),
    read=read,
)
