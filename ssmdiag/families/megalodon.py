"""Megalodon's complex moving average (Ma et al., 2024, arXiv 2404.08801): damped rotations per channel.

| paper | tensor | shape | role |
|---|---|---|---|
| α | `alpha` | channel, mode, 1 | p = σ(w), the input weight |
| δ | `delta` | channel, mode, 1 | abs λ = 1 − σ(α)σ(w) |
| θ | `theta` | channel, 1, 1 | arg λ_k = k · 2π σ(w)/N for k = 1 … N |
| η | `gamma` | channel, mode, 2 | output, complex, times √(1/N) |
| ω | `omega` | channel, 1 | skip |

K_t = Re Σ_k p η √(1/N) λ^t, all modes stored. Unlike Mega, the input weight is σ(alpha), with no β.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling
from ssmdiag.recurrence.discretisation import as_complex


def read(layer: Layer) -> Iterator[Recurrence]:
    weight = layer.weight("alpha", "sigmoid", role="step")[..., 0]
    share = layer.weight("delta", "sigmoid")[..., 0]
    angle = layer.weight("theta", "sigmoid", role="frequency")[..., 0] * (2 * math.pi)
    modes = weight.shape[1]
    harmonic = (weight * 0 + 1).cumsum(-1) / modes
    yield layer.recurrence(
        (-(weight * share)).log1p() + 1j * (angle * harmonic),
        input_matrix=as_complex(weight),
        output_matrix=layer.complex("gamma")[None] * modes**-0.5,
    )


FAMILY = Family(
    name="megalodon",
    title="Megalodon CEMA",
    paper="arXiv 2404.08801",
    memory="exact",
    traits=frozenset({"attention inside"}),
    spellings=(
        Spelling(
            "XuezheMax/megalodon",
            {
                "theta": "channel 1 1",
                "alpha": "channel mode 1",
                "delta": "channel mode 1",
                "gamma": "channel mode 2",
                "omega": "channel 1",
            },
        ),
    ),
    repositories=("XuezheMax/megalodon",),
    read=read,
)
