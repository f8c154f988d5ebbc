"""DeltaNet (Schlag et al., 2021, arXiv 2102.11174; Yang et al., 2024, arXiv 2406.06484): a memory without a decay.

    S_t = S_{t−1} (I − β_t k_t k_tᵀ) + β_t v_t k_tᵀ

| paper | tensor | shape | role |
|---|---|---|---|
| v | `v_proj.weight` | head × value, model | with the next, gives the number of heads; only its shape is used |
| – | `o_norm.weight` | value | norm of the output; only its shape is used |

λ̄ = 1 in every direction but that of the key, where writing replaces. Nothing in the file says so but `model_type` in
config.json. So too Gated DeltaProduct (arXiv 2502.10297) without its forget gate, which writes several times a token.
Source: fla-org/flash-linear-attention bc3b101, fla/layers/delta_net.py, fla/layers/gated_deltaproduct.py:75-110.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.forward import NEGATIVE_EIGENVALUES
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering
from ssmdiag.families.layouts import taps


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    writes = layer.setting("num_householder", default=1)
    heads = layer.axis("head") // (writes if isinstance(writes, int) and writes > 0 else 1)
    layer.note("no decay, λ = 1: what is stored is overwritten, not forgotten")
    rate = torch.zeros(max(heads, 1), 1, dtype=torch.float64, device=layer.device)
    yield layer.recurrence(-rate)


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("write strength", "b_proj.weight")
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
        convolution = f"convolution of the {role}"
        yield Steering(convolution, f"{role[0]}_conv1d.weight", taps)
        yield Steering(f"bias of the {convolution}", f"{role[0]}_conv1d.bias")


_SHAPES = {"o_norm.weight": "value", "v_proj.weight": "head*value _"}

FAMILY = Family(
    name="delta_net",
    title="DeltaNet",
    paper="arXiv 2406.06484",
    memory="exact",
    traits=frozenset({"fixed decay", "layers alike", "matrix memory", "overwrites"}),
    spellings=(
        Spelling("fla", _SHAPES, settings={"model_type": ("delta_net",)}),
        Spelling(
            "fla, Gated DeltaProduct without a forget gate",
            _SHAPES,
            absent=("A_log", "dt_bias", "a_proj.weight"),
            settings={"model_type": ("gated_deltaproduct",)},
        ),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    steering=steering,
    forward=(NEGATIVE_EIGENVALUES,),
    caveat="Nothing decays: along the key that is written the memory is overwritten (by β), elsewhere it is kept.",
)
