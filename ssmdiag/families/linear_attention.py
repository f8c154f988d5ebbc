"""Linear attention (Katharopoulos et al., 2020, arXiv 2006.16236): a sum over all tokens, without a decay.

    S_t = S_{t−1} + φ(k_t) v_tᵀ

| paper | tensor | shape | role |
|---|---|---|---|
| v | `v_proj.weight` | head × value, model | with the next, gives the number of heads; only its shape is used |
| – | `norm.weight` | value | norm of the output; only its shape is used |

λ̄ = 1: nothing is forgotten, and what is written adds up. Nothing in the file says so but `model_type` in config.json.
Source: fla-org/flash-linear-attention bc3b101, fla/layers/linear_attn.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering


def read(layer: Layer) -> Iterator[Recurrence]:
    import torch

    layer.note("no decay, λ = 1: what is stored is never forgotten, and adds up")
    heads = layer.axes.get("head") or layer.setting("num_heads")
    if not isinstance(heads, int) or heads < 1:
        raise LayerError(
            f"{layer.title}: neither v_proj.weight nor config.json says how many heads it has.", expected="num_heads"
        )
    yield layer.recurrence(-torch.zeros(heads, 1, dtype=torch.float64, device=layer.device))  # a rate of 0, not −0


def steering(layer: Layer) -> Iterator[Steering]:
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
    for role, name in (("query", "q"), ("key", "k")):
        for number in (1, 2):
            factor = f"feature map of the {role}, factor {number}"
            yield Steering(factor, f"feature_map_{name}.layer{number}.weight")
            yield Steering(f"bias of the {factor}", f"feature_map_{name}.layer{number}.bias")
        yield Steering(f"feature map of the {role}", f"feature_map_{name}.layer.weight")
        yield Steering(f"bias of the feature map of the {role}", f"feature_map_{name}.layer.bias")


FAMILY = Family(
    name="linear_attention",
    title="Linear attention",
    paper="arXiv 2006.16236",
    memory="exact",
    traits=frozenset({"fixed decay", "layers alike", "matrix memory"}),
    spellings=(
        # The norm alone tells it from the softmax attention of hybrids.
        Spelling(
            "fla",
            {"norm.weight": "value"},
            optional={"v_proj.weight": "head*value _"},
            path=r"(?:^|\.)attn$",
            settings={"model_type": ("linear_attn",)},
        ),
    ),
    repositories=("fla-org/flash-linear-attention",),
    read=read,
    steering=steering,
    caveat="Nothing decays: old and new add up, so that what can be read back is limited by the size of the state.",
)
