"""From sums over positions to steps: where a share that falls but for sampling passes a limit, and how surely.

The share of what is lost with N steps, S(N) = Σ_t d(t, N) / Σ_t d(t, 0), falls with N. Its fall through a limit q is
put where a falling S fits best,

    N(q) = argmax_N Σ_{n<N} (Σ_t d(t, n) − q Σ_t d(t, 0))

the level set of the isotonic regression of S with weights Σ_t d(t, 0): exact to a step where S has a step, and blind to
a single low value in the noise. Intervals are bootstraps over texts, or over stretches of them where texts are few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmdiag.probing.plan import PARTS

RESAMPLED = 400
FEW_TEXTS = 12
"""Of fewer texts, stretches are resampled."""

Interval = tuple[int | None, int | None]
"""95 % from … to …, in steps; None: beyond what was tested."""


def reach(excess: Tensor) -> int | None:
    """Return N(q) from Σ_t d(t, N) − q Σ_t d(t, 0), (step,); None where S does not fall to q.

    >>> reach(torch.tensor([0.5, 0.5, -0.1, 0.2, -0.5])), reach(torch.tensor([0.5, 0.5, 0.4]))
    (4, None)
    """
    return _or_none(int(_fall(excess)), len(excess))


def interval(excess: Tensor) -> Interval:
    """Return the 95 % interval of N(q) from resamples of the same, (resample, step)."""
    low, high = middle_95(_fall(excess))
    return _or_none(int(low), excess.shape[1]), _or_none(int(high), excess.shape[1])


def middle_95(drawn: Tensor) -> tuple[float, float]:
    """Return the values between which 95 % of the draws lie."""
    ascending = drawn.sort().values
    return float(ascending[int(0.025 * len(drawn))]), float(ascending[math.ceil(0.975 * len(drawn)) - 1])


def resample(used: Tensor) -> Tensor:
    """Return how often each block counts in each resample, (resample, block); used: whether it has anything, (block,).

    Blocks are PARTS stretches of each text in turn.
    """
    blocks = torch.arange(len(used))
    texts = blocks // PARTS
    unit = texts if len(texts[used].unique()) >= FEW_TEXTS else blocks
    units = unit[used].unique()
    drawn = torch.randint(len(units), (RESAMPLED, len(units)), generator=torch.Generator().manual_seed(0))
    often = torch.stack([(drawn == k).sum(1) for k in range(len(units))], 1).double()
    return often @ (units[:, None] == unit).double() * used


def in_bins(above: Tensor, below: Tensor, edges: Tensor) -> list[tuple[int, float]]:
    """Return (the middle of a bin, Σ above / Σ below in it) of each bin that has anything below; (step,) both."""
    found = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        under = float(below[first:end].sum())
        if under > 0:
            found.append((middle(first, end), float(above[first:end].sum()) / under))
    return found


def middle(first: int, end: int) -> int:
    """Return the step that stands for those from the first to before the end."""
    return round(math.sqrt(first * (end - 1)))


def _fall(excess: Tensor) -> Tensor:
    """Return N(q), (…,); one more than the last step where S does not fall to q."""
    before = torch.cat([torch.zeros_like(excess[..., :1]), excess.cumsum(-1)], -1)
    return before.argmax(-1)


def _or_none(step: int, beyond: int) -> int | None:
    return step if step < beyond else None
