"""Which law the observed retention of a layer decays by, and how many resamplings of its positions agree.

The law is that of `compare_decay`, down to the floor of float32's arithmetic: with the sampling error as its floor the
window shrinks to a few lags. Sampling is answered for by a bootstrap over blocks of neighbouring positions instead. A
law is said only where most resamplings find the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.assessment.memory import FLOAT32_FLOOR
from ssmdiag.decay.decay import LAWS, STATUSES, Law, compare_decay
from ssmdiag.probing.retention import Retention

DRAWS = 64
AGREEMENT = 0.9
"""Share of resamplings that must find a law for it to be said."""
FEWEST_BLOCKS = 4
"""Fewest blocks of positions that are resampled."""


@dataclass(frozen=True)
class ObservedLaw:
    """The law of the observed retention, its channels' energies summed."""

    law: str
    """Value of `Law`; `undetermined` where none is said."""
    window: tuple[int, int] | None
    """First and last lag it holds over."""
    reason: str
    """Why there is a law, or why none is said: a sentence for the user."""
    agreement: float | None
    """Share of resamplings with the verdict of the whole sample; None where there are too few positions to resample."""


def judge_law(retention: Retention, *, seed: int = 0) -> ObservedLaw:
    """Return the law of a layer's retention. `seed` decides the resamplings, and no global state."""
    blocks = len(retention.blocks)
    weight = retention.positions.expand(1, -1)
    if blocks >= FEWEST_BLOCKS:
        draw = torch.Generator().manual_seed(seed)
        picks = torch.randint(blocks, (DRAWS, blocks), generator=draw)
        times = torch.nn.functional.one_hot(picks, blocks).sum(1).to(weight)
        weight = torch.cat([weight, times * retention.positions])
    mean = torch.einsum("db,bcl->dcl", weight, retention.blocks) / weight.sum(1)[:, None, None]
    energy = mean_square(mean, retention.lags).sum(1)
    found = compare_decay(
        retention.lags, energy, FLOAT32_FLOOR * energy.amax(1, keepdim=True), context=int(retention.lags[-1])
    )
    law, own = LAWS[int(found.law[0])], found.channel(0)
    if blocks < FEWEST_BLOCKS:
        return ObservedLaw(Law.UNDETERMINED.value, None, "the text has too few positions to resample", None)
    agreement = float((found.law[1:] == found.law[0]).double().mean())
    if law is not Law.UNDETERMINED and agreement < AGREEMENT:
        return ObservedLaw(
            Law.UNDETERMINED.value,
            own.window,
            f"{law.value} for all positions together, but for {agreement:.0%} of resamplings only",
            agreement,
        )
    return ObservedLaw(law.value, own.window, STATUSES[int(found.status[0])].value, agreement)


def mean_square(retention: Tensor, lags: Tensor) -> Tensor:
    """Return the mean of R² over the lags from each of `lags` to the next, (…, bin), from R at `lags`, (…, lag).

    Between two lags R is taken as an exponential, so a bin's mean is a geometric sum.
    """
    width = lags.diff().double()
    first, last = retention[..., :-1], retention[..., 1:]
    # log q² of the ratio q a lag; what has vanished falls to nothing within a lag.
    slope = 2 * (last / first.clamp(min=1e-300)).clamp(1e-300, 1.0).log() / width
    share = torch.where(slope < 0, (slope * width).expm1() / (width * slope.expm1()), 1.0)
    return first.square() * share
