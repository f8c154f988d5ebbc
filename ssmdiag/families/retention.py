"""Retention, the memory of RetNet (Sun et al., 2023, arXiv 2307.08621).

    S_n = γ S_{n−1} + K_nᵀ V_n

| paper | tensor | shape | role |
|---|---|---|---|
| log γ | `retnet_rel_pos.decay` | head | log(1 − 2^{−5−h}) in the paper; read as stored |
| θ | `retnet_rel_pos.angle` | any | rotation of queries and keys, which does not decay; only its name is used |

torchscale keeps both as buffers of the decoder, shared by all its layers. fla (fla-org/flash-linear-attention bc3b101,
fla/ops/retention/chunk.py:68) computes γ from the number of heads in config.json; nothing of it is in the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.errors import LayerError
from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.families.layouts import taps


def read(layer: Layer) -> Iterator[Recurrence]:
    if "decay" not in layer:
        yield layer.recurrence(_of_heads(layer)[:, None])
        return
    layer.note("shared by all layers of this decoder")
    yield layer.recurrence(-layer.weight("decay", "direct")[:, None])


def _of_heads(layer: Layer) -> Tensor:
    """Return log γ (head,), which depends on the number of heads alone."""
    import torch

    heads, rows = layer.setting("num_heads"), layer.shape("q_proj.weight")[0]
    if not isinstance(heads, int) or heads < 1 or rows % heads:
        raise LayerError(
            f"{layer.title}: its decays follow from the number of heads; config.json says num_heads = {heads}.",
            expected=f"a divisor of the {rows} rows of q_proj.weight",
        )
    layer.note(f"γ is not in the file; computed from the {heads} heads in config.json")
    return (-torch.exp2(-5.0 - torch.arange(heads, dtype=torch.float64, device=layer.device))).log1p()


def steering(layer: Layer) -> Iterator[Steering]:
    for role in ("query", "key", "value"):
        yield Steering(role, f"{role[0]}_proj.weight")
        yield Steering(f"convolution of the {role}", f"{role[0]}_conv1d.weight", taps)


FAMILY = Family(
    name="retention",
    title="RetNet",
    paper="arXiv 2307.08621",
    memory="exact",
    traits=frozenset({"fixed decay", "matrix memory"}),
    spellings=(
        Spelling("microsoft/torchscale", {"decay": "head", "angle": "_"}, path=r"(?:^|\.)retnet_rel_pos$"),
        Spelling("fla", {"g_proj.weight": "_ _", "q_proj.weight": "_ _"}, settings={"model_type": ("retnet",)}),
        Spelling(
            "fla, without an output gate",
            {"g_norm.weight": "_", "q_proj.weight": "_ _"},
            absent=("g_proj.weight",),
            settings={"model_type": ("retnet",)},
        ),
    ),
    repositories=("microsoft/torchscale", "fla-org/flash-linear-attention"),
    read=read,
    steering=steering,
    caveat="The decay is the same at every token; what is written and read depends on the input.",
)
