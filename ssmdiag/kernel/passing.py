"""Lags after which shares of a kernel's energy have passed, in whole steps and between steps, for many rows at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.kernel.powers import MAX_LAG

SHARES = (0.5, 0.9, 0.99)
UNSURE = 0.1
"""Largest share of the remaining energy that may be rounding error."""
EXPONENTIAL = math.log(100) / math.log(2)
"""t₉₉ / t₅₀ of an exponential."""
FEWEST_LAGS = 2.0
"""Fewest lags (real) to 99 % of the energy at which a memory has a shape."""


@dataclass(frozen=True, eq=False)
class Passing:
    """Lags after which 50, 90 and 99 % of each row's energy have passed."""

    lags: Tensor
    """(row, share) float64 whole numbers; inf where it never passes, NaN where it is unknown."""
    heaviness: Tensor
    """Ratio of t₉₉/t₅₀ (lags between steps) to an exponential's, (row,); NaN where it has no meaning."""

    def select(self, index: slice | Tensor) -> Passing:
        """Return some of the rows."""
        return Passing(self.lags[index], self.heaviness[index])


Left = Callable[["Tensor"], "tuple[Tensor, Tensor]"]
"""(row, lag) → the energy from each lag on and its noise, both (row, lag)."""


def find_passing(left: Left, lags: Tensor, start: tuple[Tensor, Tensor], shares: Sequence[float] = SHARES) -> Passing:
    """Return the lags, exact to the step; between two steps the energy is interpolated as an exponential.

    The search starts from `lags` (lag,), ascending from 0, and `start` (row, lag), the values of `left` there.
    """
    energy, noise = start
    rows = len(energy)
    at = lags[None].expand(rows, -1)
    wanted = energy.new_tensor([1 - share for share in shares])
    if bool((energy[:, -1:] > wanted.amin() * energy[:, :1]).any()):
        count = math.ceil(math.log2(MAX_LAG / max(float(lags[-1]), 1.0)))
        later = (lags[-1].clamp(min=1) * 2.0 ** torch.arange(1, count + 1, device=lags.device)).clamp(max=MAX_LAG)
        later = later.unique()[None].expand(rows, -1)
        more, unsure = left(later)
        at, energy, noise = (torch.cat(pair, 1) for pair in ((at, later), (energy, more), (noise, unsure)))
    target = energy[:, :1] * wanted
    first = (energy[:, None] > target[..., None]).sum(2).clamp(1, at.shape[1] - 1)
    beyond = energy[:, -1:] > target
    bracket = torch.stack([first - 1, first], 2).flatten(1)

    def levels(values: Tensor) -> Tensor:
        """Return log(energy / target), (row, share, lag), for (row, share × lag)."""
        return (values.unflatten(1, (len(shares), -1)) / target[..., None]).log().nan_to_num(0.0).clamp(-700, 700)

    ends, level = at.gather(1, bracket).unflatten(1, (-1, 2)), levels(energy.gather(1, bracket))
    for _ in range(100):
        low, width = ends[..., :1], ends.diff(dim=2)
        if bool((width <= 1).all()):
            break
        middle = low + width * level[..., :1] / (level[..., :1] - level[..., 1:]).clamp(min=1e-300)
        reach = (width.square() / (8 * ends[..., 1:])).clamp(min=1)
        ahead = [low + width * part for part in (0.25, 0.5, 0.75)]
        ahead += [middle - reach, middle, middle + 1, middle + reach + 1]
        points = torch.minimum(torch.maximum(torch.cat(ahead, 2).floor(), low + 1), ends[..., 1:] - 1).sort(2).values
        points = torch.maximum(points, low)  # a closed bracket stays
        found = levels(left(points.flatten(1))[0])
        points, found = (torch.cat([b[..., :1], p, b[..., 1:]], 2) for b, p in ((ends, points), (level, found)))
        above = (found[..., 1:-1] > 0).cummin(2).values.sum(2, keepdim=True)
        pick = torch.cat([above, above + 1], 2)
        ends, level = points.gather(2, pick), found.gather(2, pick)
    between = ends[..., 0] + level[..., 0] / (level[..., 0] - level[..., 1]).clamp(min=1e-300)
    unknown = noise.gather(1, first - 1) > UNSURE * target
    unknown |= (energy[:, :1] <= 0) | (noise[:, :1] > UNSURE * energy[:, :1])
    whole = ends[..., 1].where(~beyond, math.inf).where(~unknown, math.nan)
    between = between.where(~beyond & ~unknown, math.nan)
    return Passing(whole, heaviness(between[:, 0], between[:, -1]))


def heaviness(half: Tensor, ninety_nine: Tensor) -> Tensor:
    """Return the ratio of t₉₉/t₅₀ to an exponential's; NaN where the memory is too short to have a shape."""
    ratio = ninety_nine / half.clamp(min=1e-9) / EXPONENTIAL
    return ratio.where(ninety_nine >= FEWEST_LAGS, math.nan)
