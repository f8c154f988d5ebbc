"""The law read from the modes instead of fitted: which rate dominates the remaining energy, and from which lag on.

Modes whose rates agree within a tenth are one group. Where all other modes by themselves – a kernel of their own, their
products with the group left out – hold under a tenth of the energy that remains, at every lag from one on to the
window's end, the kernel decays with that group's rate, as exact as the weights are. Nothing is said about energy below
a millionth of the whole, or below float32's noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING

import torch

from ssmdiag.decay.verdict import EXPONENTIAL_DB, EXPONENTIAL_DROP_DB, FLAT_DB, NEPER_DB

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.kernel.mode_energy import GroupEnergy

OTHERS = 0.1
"""Share of the energy that remains which all other modes may hold by themselves."""
FORGOTTEN = 1e-6
"""Share of the energy at which a window ends."""
LEAST_SHARE = 1e-3
"""Share of the energy that a law must cover."""
MOST_TERMS = 3
"""Exponentials in a sum at most."""
LEAST_SUM_SHARE = 1e-2
"""Share of the energy that a sum of them must cover."""
LEAST_COHERENCE = 0.1
"""Share of its modes' own energies below which a sum counts as cancelled."""
LAGS_BETWEEN, LAGS_NEAR = 96, 24
"""Parts of a window, and then of what lies before the first lag found; bounds at their ends prove what the other modes
hold within them."""
BEAT = 0.5
"""Nepers by which modes of a band may beat against each other between both ends of a window."""
BEAT_SHARE = 0.1
"""Share of what either end of the band would lose by which they may at most, however short the window."""
FEWEST_LAGS = 3
FEWEST_BINS = 2
LEAST_RATE = 1e-15
"""Nats per step; below it the energy is constant over a bin of any width."""
RATE_ERROR = 0.07
"""Largest difference between the mean rate of a group and the slope of the energy.

The group's phases can bend it; where modes of two rates oscillate together, a tenth of the energy can cause over half
of it.
"""
LEAST_ERROR_DB = 0.1
"""That difference in all over the window, allowed even where little is lost over it."""
STRAIGHT_DB = 0.8
"""Largest rms distance of the energy from a straight line, its oscillation removed."""
SWING_DB = 3.0
"""Largest distance of the energy that remains from a law, as modes that turn slowly bend it: rms from the group's
exponential, or in all from the fall of a sum's slowest and fastest."""
LAGS_SEEN = 48


class TailLaw(Enum):
    """What the energy that remains decays by."""

    EXPONENTIAL = "exponential"
    EXPONENTIALS = "exponentials"
    BAND = "band"
    FLAT = "flat"
    NONE = "none"


class TailStatus(Enum):
    """Why there is a law of the energy that remains, or why there is none; the value is a sentence for the user."""

    FOUND = "modes of other rates hold by themselves under a tenth of the energy that remains"
    SUM = "modes of rates beside these two or three hold by themselves under a tenth of the energy that remains"
    BAND = "modes of rates outside the band hold by themselves under a tenth of the energy that remains"
    MIXED = "modes of several rates share the energy to its end"
    BENT = "modes of one rate hold the energy, but it does not fall with that rate yet"
    FEW_LAGS = "too few lags remain where one rate rules"
    SHORT_MEMORY = "the memory ends within a few steps"
    UNKNOWN = "the modes cancel: which of them holds the energy is not known"
    DENSE = "the state matrix has no modes that can be distinguished"
    FINITE = "a convolution has no modes: its kernel ends at its last tap"
    NOT_ASKED = "the law of what remains was not looked for"
    NO_KERNEL = "there is no kernel of finite energy"


TAIL_LAWS, TAIL_STATUSES = tuple(TailLaw), tuple(TailStatus)


@dataclass(frozen=True)
class Tail:
    """The law of the energy that remains."""

    law: TailLaw
    first: int
    """Lag from which on it holds."""
    last: int
    """Last lag examined: the context's end, or where a millionth of the energy is left."""
    rate: float
    """Nats per step."""
    energy_share: float
    """Share of the energy within the context that is left at `first`."""
    rates: tuple[float, ...] = ()
    """Of a sum of exponentials, the rates of all its terms, slowest first; of a band, the slowest and the fastest."""


@dataclass(frozen=True, eq=False)
class Tails:
    """The same of many kernels side by side; every tensor is (row,)."""

    law: Tensor
    """Index into `TAIL_LAWS`."""
    status: Tensor
    """Index into `TAIL_STATUSES`."""
    first: Tensor
    last: Tensor
    rate: Tensor
    """NaN where there is no law."""
    energy_share: Tensor
    """NaN where there is no law."""
    slowest: Tensor
    """Rate of the slowest modes that hold a millionth of the energy; NaN where that is not known."""
    rates: Tensor
    """Rates of a sum's terms, (row, 3), ascending; NaN where there are fewer."""

    def select(self, index: slice | Tensor) -> Tails:
        """Return some of the rows."""
        return Tails(*(getattr(self, field.name)[index] for field in fields(self)))

    def join(self, other: Tails) -> Tails:
        """Return these rows and then those of another."""
        return Tails(*(torch.cat([getattr(self, field.name), getattr(other, field.name)]) for field in fields(self)))

    def withhold(self, rows: Tensor, status: TailStatus) -> None:
        """Remove the law of some rows, (row,) bool, and record why they have none."""
        self.law[rows], self.status[rows] = TAIL_LAWS.index(TailLaw.NONE), TAIL_STATUSES.index(status)
        for values in (self.rate, self.energy_share, self.slowest, self.rates):
            values[rows] = math.nan

    def put(self, rows: Tensor, some: Tails) -> None:
        """Write other rows in place of some."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(some, field.name)

    def unsettled(self) -> Tensor:
        """Return the rows without a law of one rate that may have one of several rates, ascending."""
        several = [TAIL_STATUSES.index(status) for status in (TailStatus.MIXED, TailStatus.BENT, TailStatus.FEW_LAGS)]
        return torch.isin(self.status, self.status.new_tensor(several)).nonzero()[:, 0]

    def counts(self) -> dict[TailLaw, int]:
        """Return how many rows have each law."""
        return dict(zip(TAIL_LAWS, torch.bincount(self.law, minlength=len(TAIL_LAWS)).tolist(), strict=True))

    def row(self, index: int) -> Tail | None:
        """Return one row as plain numbers, or None where it has no law."""
        law = TAIL_LAWS[int(self.law[index])]
        if law is TailLaw.NONE:
            return None
        first, last = int(self.first[index]), int(self.last[index])
        rates = tuple(rate for rate in self.rates[index].tolist() if not math.isnan(rate))
        return Tail(law, first, last, float(self.rate[index]), float(self.energy_share[index]), rates)

    def reason(self, index: int) -> TailStatus:
        """Return why one row has a law, or why it has none."""
        return TAIL_STATUSES[int(self.status[index])]

    def slowest_rate(self, index: int) -> float | None:
        """Return the rate of the slowest modes that hold a millionth of the energy."""
        rate = float(self.slowest[index])
        return None if math.isnan(rate) else rate


def energy_left(energy: Tensor, above: Tensor) -> Tensor:
    """Return the share of each row's energy that is left at each edge, (row, edge).

    `energy` (row, bin), `above` says whether it is above the noise; everything after the last such bin is left out.
    """
    seen = above.flip(1).cummax(1).values.flip(1)
    counted = energy.where(seen, 0.0)
    left = torch.cat([counted.flip(1).cumsum(1).flip(1), torch.zeros_like(counted[:, :1])], 1)
    return left / left[:, :1].clamp(min=torch.finfo(torch.float64).tiny)


def window_ends(share: Tensor) -> Tensor:
    """Return the position where each row's window ends, (row,): a millionth of the energy is left there."""
    return (share > FORGOTTEN).sum(1).clamp(max=share.shape[1] - 1)


Shares = Callable[["Tensor", "Tensor"], "Tensor"]
"""Rows, and lags (row, lag) → the energy from each lag on, that of the other modes, the noise, (3, row, lag)."""


def judge_tails(lags: Tensor, ends: Tensor, share: Tensor, groups: GroupEnergy, shares: Shares) -> Tails:
    """Return the law of each row's energy that remains.

    `lags` (lag,) ascending; `ends` (row,) positions in it, `share` (row, lag) of the energy that is left.
    """
    position = torch.arange(len(lags), device=lags.device)
    inside = position < ends[:, None]
    last = lags[ends][:, None]
    ruled = _ruled(groups) & inside
    length = (last - lags).clamp(min=0)
    drop = NEPER_DB * groups.rate * length

    def straight(bins: Tensor, most: float) -> Tensor:
        """Return whether the energy falls with the group's rate from each lag on."""
        final = groups.rate.gather(1, (ends[:, None] - 1).clamp(min=0))
        slope, off = _lines(lags, inside, bins, final)
        error = NEPER_DB * (slope + groups.rate).abs() * length
        return (error <= (RATE_ERROR * drop).clamp(min=LEAST_ERROR_DB)) & (off <= most)

    enough = ((drop >= EXPONENTIAL_DROP_DB) | (length >= last / 2)) & (length >= FEWEST_LAGS) & (share >= LEAST_SHARE)
    enough &= ends[:, None] - position >= FEWEST_BINS
    good = ruled & enough
    first = torch.full_like(last[:, 0], math.inf)
    if bool(good.any()):
        falls = straight(-groups.whole.diff(dim=1), EXPONENTIAL_DB)
        falls |= straight(groups.bins, STRAIGHT_DB) & (lags <= last / 4)  # later, too few oscillations are complete
        # While a kernel still rises, what remains falls slower than it will.
        held = -(-2 * groups.rate[:, :-1].clamp(min=LEAST_RATE) * lags.diff()).expm1() * groups.whole[:, :-1]
        falls[:, :-1] &= groups.bins >= 10 ** (-EXPONENTIAL_DB / 10) * held
        good &= falls
        between = torch.cat([(enough & falls)[:, :-1] & good[:, 1:], torch.zeros_like(good[:, :1])], 1)
        first = _first_lags(good, between, lags, last, shares, groups.rate)
    found = first.isfinite()
    first, position, left = _place(first, lags, share, shares)
    rate = groups.rate.gather(1, position)[:, 0]
    flat = (NEPER_DB * rate * (last[:, 0] - first) <= 4 * FLAT_DB) & found
    status = torch.full_like(ends, TAIL_STATUSES.index(TailStatus.MIXED))
    for why, where in (
        (TailStatus.FEW_LAGS, ruled.any(1)),
        (TailStatus.BENT, (ruled & enough).any(1)),
        (TailStatus.UNKNOWN, (groups.noise > OTHERS * groups.whole)[:, :1].any(1)),
        (TailStatus.SHORT_MEMORY, last[:, 0] < FEWEST_LAGS),
        (TailStatus.FOUND, found),
    ):
        status[where] = TAIL_STATUSES.index(why)
    law = torch.full_like(ends, TAIL_LAWS.index(TailLaw.NONE))
    law[found] = TAIL_LAWS.index(TailLaw.EXPONENTIAL)
    law[flat] = TAIL_LAWS.index(TailLaw.FLAT)
    return Tails(
        law=law,
        status=status,
        first=first.long(),
        last=last[:, 0].long(),
        rate=rate.where(found, math.nan),
        energy_share=left.where(found, math.nan),
        slowest=groups.slowest,
        rates=groups.slowest.new_full((len(ends), MOST_TERMS), math.nan),
    )


def name_sums(tails: Tails, lags: Tensor, ends: Tensor, share: Tensor, groups: GroupEnergy, shares: Shares) -> None:
    """Record the rows that are a sum of exponentials, by the groups treated as one.

    A sum leaves open only what the other modes hold; if its own modes cancel, no rate identifies it.
    """
    inside = torch.arange(len(lags), device=lags.device) < ends[:, None]
    clear = _to_the_end((groups.coherence >= LEAST_COHERENCE) | ~inside) & groups.rates.isfinite().all(1, keepdim=True)
    _name_several(tails, clear, lags, ends, share, groups.rates.sort(1).values, shares, TailLaw.EXPONENTIALS)


def name_bands(tails: Tails, lags: Tensor, ends: Tensor, share: Tensor, rates: Tensor, shares: Shares) -> None:
    """Record the lag from which on the modes of a band, of `rates` (row, 2), hold the remaining energy."""
    known = rates.isfinite().all(1, keepdim=True).expand_as(share)
    _name_several(tails, known, lags, ends, share, rates, shares, TailLaw.BAND)


def _name_several(
    tails: Tails,
    possible: Tensor,
    lags: Tensor,
    ends: Tensor,
    share: Tensor,
    rates: Tensor,
    shares: Shares,
    law: TailLaw,
) -> None:
    """Record the rows that have a law of several `rates`, ascending, from a lag at which it is `possible`."""
    last = lags[ends][:, None]
    good = possible & (share >= LEAST_SUM_SHARE) & (last - lags >= FEWEST_LAGS)
    first = _first_lags(good, good, lags, last, shares)
    rows = first.isfinite().nonzero()[:, 0]
    if not len(rows):
        return
    first, last = first[rows], last[rows, 0]
    left = _place(first, lags, share[rows], lambda some, at: shares(rows[some], at))[2]
    near = (left >= LEAST_SUM_SHARE) & (last - first >= FEWEST_LAGS)
    # No sum of exponentials falls slower than its slowest or faster than its fastest: modes that turn slowly do.
    part = torch.arange(LAGS_SEEN + 1, dtype=lags.dtype, device=lags.device) / LAGS_SEEN
    at = (first[:, None] + (last - first)[:, None] * part).floor()
    level = 0.5 * shares(rows, at)[0].clamp(min=1e-290).log()
    slow, fast = (level + rates[rows][:, end, None] * at for end in (0, -1))
    off = torch.maximum(slow - slow.cummin(1).values, fast.cummax(1).values - fast).amax(1)
    near &= NEPER_DB * off <= SWING_DB
    if law is TailLaw.BAND:
        # Over a short window a beat is few decibels and yet much of what is lost.
        allowed = torch.minimum(rates[rows] * (BEAT_SHARE * (last - first))[:, None], rates.new_tensor(BEAT))
        near &= (slow[:, -1] - slow[:, 0] <= allowed[:, 0]) & (fast[:, 0] - fast[:, -1] <= allowed[:, -1])
    rows, first = rows[near], first[near]
    tails.law[rows] = TAIL_LAWS.index(law)
    tails.status[rows] = TAIL_STATUSES.index(TailStatus.SUM if law is TailLaw.EXPONENTIALS else TailStatus.BAND)
    tails.first[rows] = first.long()
    tails.energy_share[rows] = left[near]
    tails.rate[rows] = rates[rows, 0]
    tails.rates[rows, : rates.shape[1]] = rates[rows]


def no_tails(rows: int, status: TailStatus, like: Tensor) -> Tails:
    """Return rows without a law, for one reason; on the device of `like`."""
    index = torch.full((rows,), TAIL_STATUSES.index(status), device=like.device)
    none = torch.full_like(index, TAIL_LAWS.index(TailLaw.NONE))
    unknown = torch.full((rows,), math.nan, dtype=torch.float64, device=like.device)
    zero = torch.zeros_like(index)
    rates = unknown[:, None].repeat(1, MOST_TERMS)
    return Tails(none, index, zero, zero.clone(), unknown, unknown.clone(), unknown.clone(), rates)


def _first_lags(
    good: Tensor, between: Tensor, lags: Tensor, last: Tensor, shares: Shares, rate: Tensor | None = None
) -> Tensor:
    """Return the first lag from which the other modes hold no more at any later one up to `last` (row, 1), or inf.

    It is one of the lags at which `good` holds, (row, lag), or lies before the next lag where `between` does. With a
    `rate` (row, lag), the whole must follow its exponential too.
    """
    found = torch.full_like(last[:, 0], math.inf)
    rows = good.any(1).nonzero()[:, 0]
    if not len(rows):
        return found
    good, between, last = good[rows], between[rows], last[rows]
    place = (good | between).to(torch.uint8).argmax(1, keepdim=True)
    first = lags[place]
    # Denser at first, where the other modes still fall fast.
    part = (torch.arange(LAGS_BETWEEN + 1, dtype=lags.dtype, device=lags.device) / LAGS_BETWEEN).square()
    at = (first + (last - first) * part).floor()
    energies = shares(rows, at)
    start = at.where(_proven(at, energies), math.inf).amin(1, keepdim=True)
    if rate is not None:
        off = _distance(at, energies[0], rate[rows].gather(1, place), start)
        start = start.where((off <= SWING_DB)[:, None], math.inf)
    some = start[:, 0].isfinite().nonzero()[:, 0]
    if len(some):
        # Bounds between lags are wide where these are far apart: what lies before is looked at more closely.
        whole, rest, noise = energies[:, some]
        fails = (rest + noise > OTHERS * (whole - noise)) & (at[some] < start[some])
        low = torch.maximum(at[some].where(fails, 0.0).amax(1, keepdim=True), first[some])
        part = torch.arange(LAGS_NEAR + 1, dtype=lags.dtype, device=lags.device) / LAGS_NEAR
        at = (low + (start[some] - low) * part).floor()
        start[some] = at.where(_proven(at, shares(rows[some], at)), start[some]).amin(1, keepdim=True)
    before = torch.searchsorted(lags, start[:, 0].contiguous(), right=True)[:, None] - 1
    on = lags.where(good & (lags >= start), math.inf).amin(1)
    found[rows] = start[:, 0].where(between.gather(1, before)[:, 0], on)
    return found


def _proven(at: Tensor, energies: Tensor) -> Tensor:
    """Return whether the other modes hold little from each lag of `at` (row, lag) on, and at none between them more.

    Energies that remain only fall: between two lags the others have at most what they have at the first, and the
    whole has at least what it has at the second.
    """
    whole, rest, noise = energies
    least = whole - noise
    least = torch.cat([least[:, 1:].where(at.diff(dim=1) > 1, least[:, :-1]), least[:, -1:]], 1)
    return _to_the_end(rest + noise <= OTHERS * least)


def _place(first: Tensor, lags: Tensor, share: Tensor, shares: Shares) -> tuple[Tensor, Tensor, Tensor]:
    """Return lags (row,), 0 where not finite, the positions of the next ones in `lags`, (row, 1), and the share left
    there, (row,), which falls as the energy does from one of the `lags` to the next.
    """
    found = first.isfinite()
    first = first.where(found, 0.0)
    position = torch.searchsorted(lags, first.contiguous())[:, None]
    before = (position - 1).clamp(min=0)
    left = share.gather(1, position)[:, 0]
    rows = (found & (lags[position[:, 0]] != first)).nonzero()[:, 0]
    if len(rows):
        both = torch.cat([before, position], 1)[rows]
        start, here, stop = shares(rows, torch.cat([lags[both[:, :1]], first[rows, None], lags[both[:, 1:]]], 1))[0].T
        high, low = share[rows].gather(1, both).T
        part = ((here - stop) / (start - stop)).nan_to_num(0.0).clamp(0, 1)
        left[rows] = low + (high - low) * part
    return first, position, left


def _distance(at: Tensor, whole: Tensor, rate: Tensor, start: Tensor) -> Tensor:
    """Return how far energies at lags `at` from `start` on are from an exponential of `rate`: rms in dB, (row,)."""
    weight = (at[:, 1:] - at[:, :-1]) * (at[:, :-1] >= start)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    level = (0.5 * whole.clamp(min=1e-290).log() + rate * at)[:, :-1]
    level = level - (weight * level).sum(1, keepdim=True)
    return NEPER_DB * (weight * level.square()).sum(1).sqrt()


def _to_the_end(holds: Tensor) -> Tensor:
    """Return whether it holds at each position and at all later ones."""
    return holds.flip(1).cummin(1).values.flip(1)


def _ruled(groups: GroupEnergy) -> Tensor:
    """Return whether all other modes hold little of the energy at each lag; between lags nothing is known."""
    return groups.rest + groups.noise <= OTHERS * groups.whole


def _lines(lags: Tensor, inside: Tensor, bins: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and rms distance in dB of the line through the log envelope from each lag to the end, (row, lag).

    The envelope of a bin is that of the exponential of `rate` (row, 1) which has the bin's energy.
    """
    width = lags.diff()
    weight = inside[:, :-1] * width
    x = lags[:-1] / lags[-1]
    held = -(-2 * rate.clamp(min=LEAST_RATE) * width).expm1()
    y = (0.5 * (bins.clamp(min=1e-290) / held).log()).where(weight > 0, 0.0)

    def after(values: Tensor) -> Tensor:
        return (weight * values).flip(1).cumsum(1).flip(1)

    count = after(torch.ones_like(y)).clamp(min=1e-300)
    mean_x, mean_y = after(x.expand_as(y)) / count, after(y) / count
    spread = after(x.square().expand_as(y)) / count - mean_x.square()
    both = after(x * y) / count - mean_x * mean_y
    slope = both / spread.clamp(min=1e-12)
    left = after(y.square()) / count - mean_y.square() - slope * both
    slope, off = slope / lags[-1], NEPER_DB * left.clamp(min=0).sqrt()
    return torch.cat([slope, slope[:, -1:]], 1), torch.cat([off, off[:, -1:]], 1)
