"""Gated DeltaNet (Yang, Kautz & Hatamizadeh, 2024, arXiv 2412.06464) and the hybrids built on it.

    S_t = e^{g_t} S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ,    g_t = −A softplus(W_a x_t + b_a)

| paper | tensor | shape | role |
|---|---|---|---|
| A | `A_log` | head | A = exp(A_log), one rate per value head |
| b_a | `dt_bias` | head | Δ = softplus(W_a x + dt_bias), read at the bias |

The gate does not pass through the short convolution, so its bias is also its value at zero input.
Comba, Gated DeltaProduct and mixtures of such memories keep the same gate and other write rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.families.interface import Family, Spelling
from ssmdiag.recurrence import zoh

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence import Recurrence

_GATE = {"dt_bias": "head", "A_log": "head"}
# KDA has a gate per channel under the same names; its projection, packed or not, tells them apart.
_KDA_GATE = tuple(
    f"{name}.{ending}"
    for name in ("f_proj", "f_proj.0", "f_a_proj")
    for ending in ("weight", "qweight", "weight_packed")
)


def read(layer: Layer) -> Iterator[Recurrence]:
    rate = layer.weight("A_log", "exp")[:, None]
    step = layer.weight("dt_bias", "softplus", role="step")[:, None]
    yield layer.recurrence(zoh(-rate, step), step=step, operating_point="the gates at their bias, as at zero input")


FAMILY = Family(
    name="gated_delta_net",
    title="Gated DeltaNet",
    paper="arXiv 2412.06464",
    memory="nominal",
    spellings=(
        # Mamba-2 has the same four names, and D and in_proj besides.
        Spelling(
            "Qwen3-Next, Qwen3.5, Qwen4",
            {**_GATE, "norm.weight": "_", "conv1d.weight": "_ _ _"},
            absent=("D", "in_proj.weight", "B_bias"),
        ),
        Spelling("OLMo-Hybrid, fla, Comba", {**_GATE, "o_norm.weight": "_"}, absent=_KDA_GATE),
        Spelling("NVlabs/GatedDeltaNet", {**_GATE, "gk_proj.weight": "head _"}, absent=("o_norm.weight",)),
    ),
    read=read,
    caveat="Along the key that is written the memory is overwritten too (by β), so the decay bounds it from above.",
)
