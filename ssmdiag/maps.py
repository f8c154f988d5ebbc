"""Stored weight → positive magnitude: the maps f in Re λ = −f(w) and Δ = f(w).

Names are those of the `--param` options; theory: P1 (arXiv 2311.14495) §3.3. Only tensor methods are
used, so that importing a family does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def softplus(w: Tensor) -> Tensor:
    """Return log(1 + eʷ), accurate in both tails.

    torch.nn.functional.softplus returns w itself above 20, which loses e⁻²⁰ = 2e-9 relative.
    """
    return w.clamp(min=0) + w.abs().neg().exp().log1p()


def heavy_tail(w: Tensor) -> Tensor:
    """Return 1 + w for w ≥ 0 and 1/(1 − w) below: Mamba-3's activation since June 2026."""
    return w.clamp(min=0) + 1 / (1 - w.clamp(max=0))


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda w: w,
    "direct": lambda w: -w,
    "direct, at least 1e-4": lambda w: (-w).clamp(min=1e-4),
    "exp": lambda w: w.exp(),
    "softplus": softplus,
    "softplus+1e-4": lambda w: softplus(w) + 1e-4,
    "sigmoid": lambda w: w.sigmoid(),
    "-logsigmoid": lambda w: softplus(-w),
    "relu": lambda w: w.clamp(min=0),
    "relu+1e-4": lambda w: w.clamp(min=0) + 1e-4,
    "best": lambda w: 1 / (w.square() + 0.5),
    "best(b=0.1)": lambda w: 1 / (w.square() + 0.1),
    "heavy-tail": heavy_tail,
}
"""Every map by name; each takes and returns a float64 tensor of the same shape."""
