"""The decay of a selective layer on real input, as a clock: log λ̄(t) = −Δ(t) r; the input sets Δ, the weights r.

Every selective family factors so: Mamba's Δ(t) is its step and r = exp(A_log); a forget gate f(t) is a clock with
Δ(t) = −log f(t) and r = 1. The product, 16 times larger than Δ in Mamba, need never be formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Clock:
    """Decay of every channel and mode at every token of an input: log |λ̄(t)[channel, mode]| = −step · rate."""

    step: Tensor
    """Δ(t), (batch, time, channel), ≥ 0 where the state decays: nats per unit rate that pass at this token."""
    rate: Tensor
    """r, (channel, mode), per step, > 0 where the state decays."""


@dataclass(frozen=True, eq=False)
class Scan:
    """All that a layer's scan is given. With a head of one channel in Mamba, and a group of heads sharing B and C,

        h_t = exp(−Δ_t r) h_{t−1} + Δ_t B_t x_t,     y_t = Σ_n C_t[n] h_t[n] + D x_t

    for each channel of a head.
    """

    clock: Clock
    """Δ (batch, time, head) and r (head, mode), or (head, 1) where all modes of a head share it."""
    input: Tensor
    """x, (batch, time, head, channel)."""
    write: Tensor
    """B, (batch, time, group, mode)."""
    read: Tensor
    """C, (batch, time, group, mode)."""
    skip: Tensor
    """D, (head, channel), or (head, 1) where all channels of a head share it."""
