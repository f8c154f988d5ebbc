"""Weights as MLX quantises them: codes in `weight` (uint32), a scale and a bias for each group of a row beside them.

    w = scale · q + bias

Codes of 2 to 8 bits follow each other from the lowest bit up, across bytes too (ml-explore/mlx 0e18bb0,
mlx/backend/cpu/quantized.cpp, extract_bits). Bits and size of a group are in config.json under `quantization`, for
single modules under their paths; where it gives none, the shapes leave a choice and nothing is unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ssmdiag.checkpoint import StoredTensor
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.families.layer import Layer

if TYPE_CHECKING:
    from torch import Tensor

BITS = (2, 3, 4, 5, 6, 8)
SETTINGS = ("quantization", "quantization_config")
_ROUNDED = 2.0**-8
"""Relative rounding of scales and biases, stored in bfloat16 at the coarsest."""


def unpack(layer: Layer, weight: StoredTensor, parts: Sequence[StoredTensor]) -> tuple[Tensor, Tensor] | None:
    """Return a weight's values and how far each may be from what was quantised; None where it is not MLX's.

    Both are (row, column) in float32. MLX puts the larger end of a group on a code, which moves the other end by up to
    a step; scales and biases are rounded.
    """
    import torch

    beside = {part.name.removeprefix(weight.name.removesuffix("weight")): part for part in parts}
    scales, biases = beside.get("scales"), beside.get("biases")
    if scales is None or biases is None or weight.dtype != "uint32" or len(weight.shape) != 2:
        return None
    if scales.shape != biases.shape or len(scales.shape) != 2 or scales.shape[0] != weight.shape[0]:
        return None
    if not is_number(scales.dtype) or (bits := _bits(layer, weight, scales)) is None:
        return None
    stream = weight.load().to(layer.device).contiguous().view(torch.uint8)
    columns = 8 * stream.shape[1] // bits
    first = torch.arange(columns, device=stream.device) * bits
    low = stream.index_select(1, first // 8).to(torch.int32)
    high = stream.index_select(1, (first // 8 + 1).clamp(max=stream.shape[1] - 1)).to(torch.int32)
    codes = ((low | (high << 8)) >> (first % 8).to(torch.int32)) & (2**bits - 1)
    group = columns // scales.shape[1]
    scale, bias = (
        part.load().to(layer.device, torch.float32).repeat_interleave(group, dim=1) for part in (scales, biases)
    )
    doubt = scale.abs() * (1 + 2**bits * _ROUNDED) + bias.abs() * _ROUNDED
    return torch.addcmul(bias, scale, codes.to(torch.float32)), doubt


def _bits(layer: Layer, weight: StoredTensor, scales: StoredTensor) -> int | None:
    """Return the bits of a code that config.json gives, if the shapes agree."""
    module = weight.stored_name.removesuffix(".weight")
    settings = layer.checkpoint.settings
    for root in SETTINGS:
        for place in (f"{root}.{module}", root):
            bits, group = settings.get(f"{place}.bits"), settings.get(f"{place}.group_size")
            if settings.get(f"{place}.mode", "affine") != "affine" or bits not in BITS or type(group) is not int:
                continue
            fits = 32 * weight.shape[1] == bits * group * scales.shape[1] and group > 0
            return bits if fits else None
    return None
