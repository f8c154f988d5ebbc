"""Did the modes that were slowest at first become slower? Then the fall of the smallest rate is no selection effect.

The smallest of many rates falls even if all of them only wander: whichever fell furthest is the smallest.
Modes chosen at the first checkpoint are not chosen for what they did later, so Student's t on their changes is fair.
Three choices are tried: the slowest twentieth, the slowest quarter, and all; the smallest p-value is tripled.
The modes of one channel may share a step Δ and wander together, so one of each channel is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.compare.significance import student_p

SHARES, FEWEST = (20, 4, 1), 8
"""One unit in so many is used, the slowest at first; and the least number of units."""
CHANNELS = 4
"""From this many channels on, a unit is a channel (its slowest mode at first); with fewer, a mode."""


@dataclass(frozen=True)
class ModeDrift:
    """Change of log rate since the first checkpoint of those that were slowest there."""

    mean: float
    error: float
    """Standard error of the mean."""
    count: int

    def p(self, direction: float) -> float:
        """Return the two-sided p-value of a mean change in this direction; 1 if the mean went the other way."""
        return 1.0 if self.mean * direction <= 0 else student_p(self.mean / max(self.error, 1e-12), self.count - 1)


def p_of_modes(drifts: Sequence[ModeDrift], direction: float) -> float:
    """Return the p-value of several choices of modes: the smallest, times their number."""
    return min(1.0, len(drifts) * min(drift.p(direction) for drift in drifts))


def drifts_of_first_slowest(before: Tensor, now: Tensor) -> tuple[ModeDrift, ...]:
    """Return how the slowest units of `before` have changed until `now`, both rates (channel, mode) in nats per step.

    Units that agree to the bit in both count once: they are copies. None with fewer than two units that decay.
    """
    sound = (before > 0) & (now > 0) & (before < math.inf) & (now < math.inf)
    if len(before) >= CHANNELS:
        at = before.where(sound, math.inf).argmin(1, keepdim=True)
        before, now, sound = (values.gather(1, at) for values in (before, now, sound))
    first, last = before[sound], now[sound]
    order = last.argsort()
    order = order[first[order].argsort(stable=True)]
    first, last = first[order], last[order]
    other = torch.ones_like(first, dtype=torch.bool)
    other[1:] = (first[1:] != first[:-1]) | (last[1:] != last[:-1])
    changes = (last[other] / first[other]).log()
    counts = dict.fromkeys(min(max(len(changes) // share, FEWEST), len(changes)) for share in SHARES)
    chosen = (changes[:count] for count in counts if count > 1)
    return tuple(ModeDrift(float(x.mean()), float(x.std(correction=1)) / math.sqrt(len(x)), len(x)) for x in chosen)
