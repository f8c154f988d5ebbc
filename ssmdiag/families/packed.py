"""Weights made of more than one tensor: quantised, adapted or normalised, as the usual tools write them."""

from __future__ import annotations

import re

from ssmdiag.checkpoint import StoredTensor
from ssmdiag.families.interface import Layer

PACKED = re.compile(
    r"(?:qweight|qzeros|scales|biases|g_idx|SCB|absmax|quant_map|input_scale|weight_(?:packed|scale|zero|shape|format|"
    r"global|scb|[gv]$)\w*|weight\.(?:absmax|quant|nested|bitsandbytes)\S*|lora_\S+|parametrizations\.weight\.\S+)$"
)
"""Names of tensors beside, or instead of, a weight that is quantised, adapted or normalised."""


def packed_with(layer: Layer, local: str) -> tuple[StoredTensor, ...]:
    """Return the tensors beside a module's weight, or instead of it, that make it more than one matrix."""
    if not local.endswith(".weight"):
        return ()
    module = layer.full_name(local).removesuffix("weight")
    names = layer.checkpoint.below(module.removesuffix("."))
    return tuple(layer.checkpoint[name] for name in names if PACKED.match(name.removeprefix(module)))
