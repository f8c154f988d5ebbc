"""RWKV-7, Goose (Peng et al., 2025, arXiv 2503.14456): a matrix memory with vector decay and a delta rule.

    S_t = S_{t−1} (diag(w_t) − κ_tᵀ (a_t ⊙ κ_t)) + v_tᵀ k_t,    w_t = exp(−e^{−1/2} σ(w₀ + tanh(x_t W₁) W₂))

| paper | tensor | shape | role |
|---|---|---|---|
| w₀ | `w0`, fla: `w_lora.lora.2.bias` | head × key | gate where tanh(…) is 0 |
| r_k | `r_k` | head, key | gives the number of heads |

The log-decay lies between −e^{−1/2} and 0 by construction: no channel forgets faster than w = 0.545.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.families.interface import Family, Spelling

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence import Recurrence

FASTEST = math.exp(-0.5)
"""Largest rate, in nats per step."""


def read(layer: Layer) -> Iterator[Recurrence]:
    decay = "w0" if "w0" in layer else "w_lora.lora.2.bias"
    gate = layer.weight(decay, "sigmoid").reshape(layer.shape("r_k"))
    yield layer.recurrence(-FASTEST * gate, operating_point="the gates at their bias, as at zero input")


FAMILY = Family(
    name="rwkv7",
    title="RWKV-7",
    paper="arXiv 2503.14456",
    memory="nominal",
    spellings=(
        Spelling("BlinkDL/RWKV-LM", {"w0": "1 1 head*key", "r_k": "head key", "k_k": "1 1 head*key"}),
        Spelling("fla", {"w_lora.lora.2.bias": "head*key", "r_k": "head key"}),
    ),
    read=read,
    caveat="Along the key that is removed (κ) the memory is overwritten too, so the decay bounds it from above.",
)
