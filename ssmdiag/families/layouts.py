"""Conversions between the layouts of different spellings, shared by families (`Steering.layout`, `read`)."""

from __future__ import annotations

from ssmdiag.families.interface import Layer, Tensor


def taps(kernel: Tensor, layer: Layer) -> Tensor:
    """Return (channel, tap) of a depthwise convolution, wherever its axis of 1 is: MLX has it last."""
    return kernel.flatten(1) if kernel.ndim > 1 else kernel


def transposed(kernel: Tensor, layer: Layer) -> Tensor:
    """Return (output, input) from (input, output), the order in Flax and in RWKV's own code."""
    return kernel.T if kernel.ndim == 2 else kernel


def flat(values: Tensor, layer: Layer) -> Tensor:
    """Return a vector without its axes of 1."""
    return values.flatten()


def share(rows: Tensor, layer: Layer, *, part: int, parts: int) -> Tensor:
    """Return one of several equal shares of the rows."""
    return rows.chunk(parts)[part]


def by_head(values: Tensor, layer: Layer) -> Tensor:
    """Return (head, key) of a vector over all heads, by `wkv.head_size` in GGUF's metadata; (channel, 1) without it."""
    size = layer.setting("wkv.head_size")
    fits = isinstance(size, int) and size > 0 and values.numel() % size == 0
    return values.reshape(-1, size if fits else 1)


def mix(fused: Tensor, layer: Layer, *, part: int) -> Tensor | None:
    """Return one of the vectors of a token shift that GGUF stacks."""
    return fused.flatten(1)[part] if fused.ndim > 1 and len(fused) > part else None
