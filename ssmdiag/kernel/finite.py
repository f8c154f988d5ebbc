"""The energy of a convolution's kernel, from its taps: sums of squares, with nothing beyond the last.

    E(τ) = Σ_{τ≤t<L} K_t²

A convolution has no eigenvalues and no half-life: K taps remember K − 1 steps. `horizon` is the last tap that is not
zero, the law is the one that the taps follow, else `finite`. Taps are (copy, channel, lag) float64; energies sum over
copies. Squares add up from the far end on, so that a small tail keeps its digits.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 2.0**-53


def tail_energy(taps: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
    """Return E at whole lags, (channel, lag), and its noise."""
    left = _left(taps)
    values = left[:, lags.clamp(max=taps.shape[2]).long()]
    return values, values * (EPSILON * taps.shape[0] * taps.shape[2])


def band_energy(taps: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ K_t² over edges[k] ≤ t < edges[k + 1], (channel, bin), and its noise."""
    lags = torch.arange(taps.shape[2], device=taps.device, dtype=edges.dtype)
    bins = torch.searchsorted(edges, lags, right=True) - 1
    inside = (bins >= 0) & (bins < len(edges) - 1)
    values = taps.new_zeros(taps.shape[1], len(edges) - 1)
    values = values.index_add(1, bins[inside], taps[..., inside].square().sum(0))
    return values, values * (EPSILON * taps.shape[0] * taps.shape[2])


def lag_left(taps: Tensor, share: float) -> Tensor:
    """Return the first lag from which at most this share of the energy is left, (channel,) float64."""
    left = _left(taps)
    return (left > share * left[:, :1]).sum(1).double()


def last_tap(taps: Tensor) -> Tensor:
    """Return the lag of the last tap that is not 0 in any copy, (channel,) float64; −1 where all are 0."""
    lags = torch.arange(1, taps.shape[2] + 1, device=taps.device, dtype=torch.float64)
    return (lags * (taps != 0).any(0)).amax(1) - 1


def taps_at(taps: Tensor, lags: Tensor) -> Tensor:
    """Return K at whole lags, (copy, channel, lag): 0 past the last tap."""
    return torch.nn.functional.pad(taps, (0, 1))[..., lags.clamp(max=taps.shape[2]).long()]


def _left(taps: Tensor) -> Tensor:
    """Return E at every lag from 0 to the number of taps, (channel, lag)."""
    energy = taps.square().sum(0)
    return torch.nn.functional.pad(energy.flip(1).cumsum(1).flip(1), (0, 1))
