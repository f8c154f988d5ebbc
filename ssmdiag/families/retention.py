"""Retention, the memory of RetNet (Sun et al., 2023, arXiv 2307.08621), where the decay is stored.

    S_n = γ S_{n−1} + K_nᵀ V_n

| paper | tensor | shape | role |
|---|---|---|---|
| log γ | `retnet_rel_pos.decay` | head | log(1 − 2^{−5−h}) in the paper; read as stored |
| θ | `retnet_rel_pos.angle` | any | rotation of queries and keys, which does not decay; only its name is used |

torchscale keeps both as buffers of the decoder, shared by all its layers. Other implementations
recompute γ from the number of heads and leave nothing in the file to recognise.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling


def read(layer: Layer) -> Iterator[Recurrence]:
    layer.note("shared by all layers of this decoder")
    yield layer.recurrence(-layer.weight("decay", "direct")[:, None])


FAMILY = Family(
    name="retention",
    title="RetNet",
    paper="arXiv 2307.08621",
    memory="exact",
    traits=frozenset({"fixed decay", "matrix memory"}),
    spellings=(Spelling("microsoft/torchscale", {"decay": "head", "angle": "_"}, path=r"(?:^|\.)retnet_rel_pos$"),),
    read=read,
    caveat="The decay is the same at every token; what is written and read depends on the input.",
)
