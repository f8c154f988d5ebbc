"""Where to start a fit: the best point of a grid over t₀, on which a decay law is linear least squares."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ssmdiag.decay.profile import LINE, Profile

GRID_POINTS = 24
SHORTEST_OFFSET = 0.25
"""Steps. A smaller t₀ is pinned down by lag 0 alone."""
OFFSET_SHARE = 10.0
"""t₀ is at most a tenth of the last lag: with a later bend a power law fits any smooth curve."""
_TINY = 1e-30


def best_grid_points(profile: Profile, edges: Tensor) -> dict[str, Tensor]:
    """Return (p, β, t₀) as (channel, 3) for each law to start from, evaluated at the middle of each bin."""
    longest = float(edges[-1])
    lag = (edges[:-1] + edges[1:] - 1).double() / 2
    top = max(longest / profile.offset_share, 2 * SHORTEST_OFFSET)
    position = torch.linspace(0, 1, GRID_POINTS, dtype=torch.float64, device=lag.device)
    offsets = SHORTEST_OFFSET * (top / SHORTEST_OFFSET) ** position
    weight, y = profile.root_weight.square(), profile.log_rms
    weighted = weight * y
    if profile.pooled:
        # A pooled block stands at the bin that holds its mean lag.
        place = torch.searchsorted(edges[1:].double(), profile.lag.contiguous(), right=True)
        place = place.clamp(max=lag.shape[0] - 1).expand(y.shape)
        weighted = torch.zeros_like(y).scatter_add_(1, place, weighted)
        weight = torch.zeros_like(y).scatter_add_(1, place, weight)
    t = (lag / longest)[:, None]
    one = torch.ones_like(t)
    bend = torch.log1p(lag[:, None] / offsets)
    sizes = [1, 1, *[GRID_POINTS] * 3]
    t_, tt, l_, ll, lt = _times(weight, torch.cat([t, t * t, bend, bend * bend, bend * t], 1)).split(sizes, 1)
    y_, ty, ly = _times(weighted, torch.cat([one, t, bend], 1)).split([1, 1, GRID_POINTS], 1)
    tt, ll, lt = (tt - t_ * t_).clamp(min=_TINY), (ll - l_ * l_).clamp(min=_TINY), lt - l_ * t_
    ty, ly = t_ * y_ - ty, l_ * y_ - ly
    # Four active sets: neither, rate alone, exponent alone, both.
    rate = ty.clamp(min=0) / tt
    exponent = ly.clamp(min=0) / ll
    determinant = (ll * tt - lt * lt).clamp(min=_TINY)
    p = (ly * tt - ty * lt) / determinant
    b = (ty * ll - ly * lt) / determinant
    inside = (p > 0) & (b > 0)
    forbidden = offsets > longest_offset(profile)[:, None]
    alone = exponent * ly
    power = alone.masked_fill(forbidden, -1).argmax(1, keepdim=True)
    gain = torch.where(inside, p * ly + b * ty, alone).masked_fill(forbidden, -1)
    both = gain.argmax(1, keepdim=True)
    zero = torch.zeros_like(y_)
    inside = inside.gather(1, both)
    return {
        "flat": torch.cat([zero, zero, zero + 1], 1),
        "exponential": torch.cat([zero, rate / longest, zero + 1], 1),
        "polynomial": torch.cat([exponent.gather(1, power), zero, offsets[power]], 1),
        "truncated": torch.cat(
            [
                torch.where(inside, p.gather(1, both), exponent.gather(1, both)),
                torch.where(inside, b.gather(1, both), zero) / longest,
                offsets[both],
            ],
            1,
        ),
    }


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return rows @ matrix, each row computed alone and aligned to a cache line.

    In one product a row's last bits depend on how many others there are, and on where it begins.
    """
    fill = -len(matrix) % LINE
    rows, matrix = pad(rows, (0, fill)), pad(matrix, (0, 0, 0, fill))
    return torch.bmm(rows[:, None], matrix.expand(len(rows), *matrix.shape))[:, 0]


def longest_offset(profile: Profile) -> Tensor:
    """Return the largest t₀ allowed over the window of each channel, steps."""
    return (profile.last / profile.offset_share).clamp(min=2 * SHORTEST_OFFSET)
