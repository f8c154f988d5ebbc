"""Lightning attention (Qin et al., 2024, arXiv 2401.04658), as in MiniMax-01: linear attention with a fixed decay.

    S_t = λ S_{t−1} + k_tᵀ v_t,    λ = e^{−s},    s_{l,h} = a_h (1 − l/(L − 1) + 10⁻⁵),    a_h = 2^{−8h/H}, h = 1 … H

| paper | tensor | shape | role |
|---|---|---|---|
| s | `slope_rate` | head, 1, 1 | rate in nats per step, fixed by head and layer; not trained |

l counts all L layers of the model, attention included; the last forgets over some 10⁵ steps. The first
releases (MiniMax-Text-01, M1) keep no slopes: they are then computed from config as their code does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.forward import ACTIVATION
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering


def read(layer: Layer) -> Iterator[Recurrence]:
    if "slope_rate" in layer:
        yield layer.recurrence(-layer.weight("slope_rate", "none")[:, :, 0])
        return
    import torch

    heads, layers = layer.setting("num_attention_heads"), layer.setting("num_hidden_layers")
    if not heads or not layers or layer.number is None:
        raise LayerError(
            f"{layer.title}: its slopes are not in the file, and config.json does not give them.",
            expected="num_attention_heads and num_hidden_layers",
        )
    depth = 1 - layer.number / max(layers - 1, 1) + 1e-5
    layer.note("slopes are not in the file; computed from the number of heads and layers in config.json")
    slopes = torch.tensor(_slopes(heads), dtype=torch.float64, device=layer.device)
    yield layer.recurrence(-depth * slopes[:, None])


def _slopes(heads: int) -> list[float]:
    """Return a_h; between two powers of 2, the lower one's and then every other of the higher one's (ALiBi)."""
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / whole) for head in range(whole)]
    return slopes + [2 ** (-4 * (2 * head + 1) / whole) for head in range(heads - whole)]


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("query, key and value", "qkv_proj.weight")
    # transformers keeps powers of λ beside the slopes, and uses them in place of λ for all tokens of a prompt but one.
    yield Steering("decay of what is read", "query_decay")
    yield Steering("decay of what is written", "key_decay")
    yield Steering("decay within a block", "diagonal_decay")


FAMILY = Family(
    name="lightning_attention",
    title="Lightning attention",
    paper="arXiv 2401.04658",
    memory="exact",
    traits=frozenset({"fixed decay", "matrix memory"}),
    spellings=(
        Spelling("MiniMax, transformers", {"slope_rate": "head 1 1"}),
        Spelling(
            "MiniMax-Text-01, MiniMax-M1",
            {"output_gate.weight": "_ _", "qkv_proj.weight": "_ _", "norm.weight": "_"},
            absent=("slope_rate",),
            settings={"model_type": ("minimax_text_01", "minimax_m1")},
        ),
    ),
    model_types=("minimax",),
    read=read,
    steering=steering,
    forward=(ACTIVATION,),
    caveat="The decay is the same at every token; what is written and read depends on the input.",
)
