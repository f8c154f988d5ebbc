"""Which law a memory kernel decays by, over which lags, and how sure that is: for every channel at once.

A finite recurrence is exponential in the end, always. The question with an answer is which law holds over the lags
that matter: from 0 to the context, or to where the kernel sinks into the arithmetic's noise. That window is part of
every verdict.

The simplest law is taken whose residual is not clearly worse than that of the largest; a power law has further to
leave a residual small enough that no handful of exponentials is behind it, over decades enough to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from enum import Enum

import torch
from torch import Tensor

from ssmdiag.decay_laws import LawFit, Profile, fit_laws

NEPER_DB = 20 / math.log(10)
"""dB per neper of amplitude."""
NOISE_MARGIN = 1000.0
"""A bin counts where its mean square is 30 dB above the floor, so that noise bends it by a quarter dB at most."""
FEWEST_BINS = 6
MODEL_ERROR_DB = 0.05
"""Residuals below this are the binned law's own error and the arithmetic's, not a difference between laws."""
FLAT_DB = 0.1
EXPONENTIAL_DB = 1.5
"""Largest rms residual of an exponential: kernels oscillate, and the rms over a bin ripples with them."""
EXPONENTIAL_DROP_DB = 10.0
RATE_ERROR = 0.03
"""Largest standard error of an exponential's rate, relative to it."""
SAME_RATE = 0.05
"""A truncated law whose rate is this near the exponential's differs by what an oscillation does to the first lags."""
RIPPLED_BLOCKS = 10
"""Fewest blocks from which an envelope that ripples by more than `POWER_DB` is read."""
POWER_DB = 0.3
"""Largest rms residual of a power law: the best four exponentials over four decades leave more."""
TRUNCATED_DB = 0.6
"""Largest rms residual of a truncated power law, which claims less: layers of many channels come near it."""
POWER_DECADES = 1.5
"""Decades of t + t₀ in the window."""
SMALLEST_EXPONENT = 0.2
CONTRAST = 2.0
"""How many times the residual of a law a rival of another kind must leave."""
CHUNK = 8192
_SMALLEST = 1e-290


class Law(Enum):
    """What a kernel decays by."""

    EXPONENTIAL = "exponential"
    POLYNOMIAL = "polynomial"
    TRUNCATED = "truncated"
    FLAT = "flat"
    UNDETERMINED = "undetermined"


class DecayStatus(Enum):
    """Why there is a law, or why there is none; the value is a sentence for the user."""

    FITTED = "one law describes the kernel over the window"
    NO_LAW = "no law describes the kernel over the window"
    INDISTINCT = "the window is too short, or the decay over it too small, to tell the laws apart"
    UNRESOLVED = "the kernel oscillates too slowly for its envelope to be seen"
    TOO_FEW = "too few bins of lags lie above the noise"
    SHORT_MEMORY = "the memory ends within a few steps, too few to tell a law"
    SHORT_CONTEXT = "the context has too few lags to tell a law"
    GROWS = "the kernel grows with the lag"
    ZERO = "the kernel is zero at every lag"
    NOT_FINITE = "the kernel is not finite"


LAWS = tuple(Law)
STATUSES = tuple(DecayStatus)
_FITTED_LAWS = (Law.FLAT, Law.EXPONENTIAL, Law.POLYNOMIAL, Law.TRUNCATED)


@dataclass(frozen=True)
class ChannelDecay:
    """The decay of one channel; None where there is nothing to say."""

    law: Law
    status: DecayStatus
    window: tuple[int, int] | None
    """First and last lag used."""
    amplitude: float | None
    """Envelope at lag 0 by the chosen law."""
    exponent: float | None
    exponent_error: float | None
    rate: float | None
    """Nats per step."""
    rate_error: float | None
    offset: float | None
    """t₀, steps."""
    offset_error: float | None
    residual_db: dict[Law, float] | None
    """Rms residual of each law over the window."""


@dataclass(frozen=True)
class DecayComparison:
    """Laws of all channels side by side; every tensor is (channel,). Numbers mean something only where `fitted`."""

    context: int
    law: Tensor
    """Index into `LAWS`."""
    status: Tensor
    """Index into `STATUSES`."""
    fitted: Tensor
    """Whether laws were fitted at all, whatever the verdict; everything below is 0 where not."""
    first: Tensor
    last: Tensor
    """Window of lags used, both ends included."""
    fits: Mapping[Law, LawFit]

    @property
    def channels(self) -> int:
        return self.law.numel()

    def counts(self) -> dict[Law, int]:
        """Return how many channels follow each law."""
        return dict(zip(LAWS, torch.bincount(self.law, minlength=len(LAWS)).tolist(), strict=True))

    def channel(self, index: int) -> ChannelDecay:
        """Return one channel's decay as plain numbers."""
        law, status = LAWS[int(self.law[index])], STATUSES[int(self.status[index])]
        fitted = bool(self.fitted[index])
        fit = self.fits.get(law)

        def number(name: str, *laws: Law) -> float | None:
            return float(getattr(fit, name)[index]) if fit is not None and law in laws else None

        power, decaying = (Law.POLYNOMIAL, Law.TRUNCATED), (Law.EXPONENTIAL, Law.TRUNCATED)
        amplitude = number("amplitude", *_FITTED_LAWS)
        return ChannelDecay(
            law=law,
            status=status,
            window=(int(self.first[index]), int(self.last[index])) if fitted else None,
            amplitude=None if amplitude is None else math.exp(amplitude),
            exponent=number("exponent", *power),
            exponent_error=number("exponent_error", *power),
            rate=number("rate", *decaying),
            rate_error=number("rate_error", *decaying),
            offset=number("offset", *power),
            offset_error=number("offset_error", *power),
            residual_db={law: NEPER_DB * float(fit.residual[index]) for law, fit in self.fits.items()}
            if fitted
            else None,
        )

    def describe(self, index: int) -> str:
        """Return one sentence on one channel's decay, with its window."""
        decay = self.channel(index)
        if decay.window is None:
            return f"{decay.status.value[0].upper()}{decay.status.value[1:]}."
        where = f"over lags {decay.window[0]:,} to {decay.window[1]:,}"
        if decay.window[1] < self.context - 1:
            where += f" of {self.context:,}"
        if decay.law is Law.UNDETERMINED:
            assert decay.residual_db is not None
            law, least = min(decay.residual_db.items(), key=lambda item: item[1])
            return f"Undetermined {where}: {decay.status.value} (best: {law.value}, {least:.2g} dB rms)."
        assert decay.residual_db is not None
        off = f"{decay.residual_db[decay.law]:.2g} dB rms off"
        if decay.law is Law.FLAT:
            return f"Does not decay {where} ({off})."
        if decay.law is Law.EXPONENTIAL:
            assert decay.rate is not None
            return f"Forgets exponentially, half gone every {math.log(2) / decay.rate:,.3g} steps, {where} ({off})."
        power = f"(1 + t/{decay.offset:.3g})^−{decay.exponent:.2f}"
        if decay.law is Law.POLYNOMIAL:
            return f"Forgets like a power of the lag, {power}, {where} ({off})."
        assert decay.rate is not None
        return f"Forgets like a power of the lag, {power}, cut off at {1 / decay.rate:,.3g} steps, {where} ({off})."


def compare_decay(edges: Tensor, mean_square: Tensor, floor: Tensor | float, *, context: int) -> DecayComparison:
    """Return the law each channel's kernel decays by.

    Parameters
    ----------
    edges
        (bin + 1,) ascending lags, bin b holding lags edges[b] … edges[b+1] − 1; about log-spaced.
    mean_square
        (channel, bin) float64, mean of K² over the lags of the bin. For a layer, the sum over its channels.
    floor
        Mean square of the arithmetic's noise, a number or anything that broadcasts to `mean_square`.
    context
        Lags that matter; said with the window, and not otherwise used.

    Raises
    ------
    ValueError
        If the shapes do not belong together or the edges do not ascend from 0 or more.
    """
    if edges.ndim != 1 or mean_square.ndim != 2 or mean_square.shape[1] != edges.numel() - 1:
        raise ValueError(
            f"mean_square has shape {tuple(mean_square.shape)} and edges {tuple(edges.shape)}: "
            "expected (channel, bin) and (bin + 1,)"
        )
    edges = edges.to(mean_square.device)
    if edges.numel() < 2 or int(edges[0]) < 0 or not bool((edges.diff() > 0).all()):
        raise ValueError("edges must be two or more ascending lags, none negative")
    floor = torch.as_tensor(floor, dtype=torch.float64, device=mean_square.device).expand(mean_square.shape)
    comparison = _blank(edges, mean_square.shape[0], context)

    def compare(start: int) -> None:
        chunk = slice(start, start + CHUNK)
        _compare_chunk(edges, mean_square[chunk].double(), floor[chunk], comparison, start)

    _share_out(compare, range(0, mean_square.shape[0], CHUNK), 1 if mean_square.is_cuda else torch.get_num_threads())
    return comparison


def _share_out(work: Callable[[int], None], pieces: Sequence[int], threads: int) -> None:
    """Do the pieces on as many cores as torch uses: a piece to a core, which torch then does not split.

    Split between cores, operations as small as these spend half their time waiting for each other.
    """
    if threads == 1 or len(pieces) < 2:
        for piece in pieces:
            work(piece)
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for _ in pool.map(work, pieces):
                pass
    finally:
        # The number is each thread's own, but new threads start with the one set last.
        torch.set_num_threads(threads)


def _blank(edges: Tensor, channels: int, context: int) -> DecayComparison:
    zero = torch.zeros(channels, dtype=torch.float64, device=edges.device)
    whole = torch.zeros(channels, dtype=torch.long, device=edges.device)
    return DecayComparison(
        context=context,
        law=torch.full_like(whole, LAWS.index(Law.UNDETERMINED)),
        status=torch.full_like(whole, STATUSES.index(DecayStatus.ZERO)),
        fitted=torch.zeros_like(whole, dtype=torch.bool),
        first=whole.clone(),
        last=whole.clone(),
        fits={law: LawFit(**{field.name: zero.clone() for field in fields(LawFit)}) for law in _FITTED_LAWS},
    )


def _compare_chunk(edges: Tensor, mean_square: Tensor, floor: Tensor, comparison: DecayComparison, start: int) -> None:
    """Write the laws of channels `start` onwards into the comparison."""
    status = comparison.status[start : start + mean_square.shape[0]]
    # One sum tells whether anything in a row is not finite.
    broken = ~(mean_square.sum(1) + floor.sum(1)).isfinite()
    # An infinity with nothing undefined beside it is a kernel that outgrew the numbers.
    overflow = broken.clone()
    overflow[broken] &= ~(mean_square[broken].isnan() | ~floor[broken].isfinite()).any(1)
    overflow[broken] &= mean_square[broken, 0].isfinite()
    zero = ~broken & (mean_square <= NOISE_MARGIN * floor).all(1)
    rising = _grows(edges, mean_square)
    for mark, where in (
        (DecayStatus.ZERO, zero),
        (DecayStatus.NOT_FINITE, broken),
        (DecayStatus.GROWS, overflow | (rising & ~broken & ~zero)),
    ):
        status[where] = STATUSES.index(mark)
    left = ~(broken | zero | rising)
    if edges.numel() <= FEWEST_BINS:
        status[left] = STATUSES.index(DecayStatus.SHORT_CONTEXT)
        return
    # Channels whose energy never rises share their bins, and with them the cost of the law's averages.
    smooth = (mean_square[:, 1:] <= mean_square[:, :-1] * (1 + 1e-9)).all(1)
    for group in (left & smooth, left & ~smooth):
        index = group.nonzero()[:, 0]
        if index.numel():
            _compare_group(edges, mean_square[index], floor[index], comparison, start + index, bool(smooth[index[0]]))


def _grows(edges: Tensor, mean_square: Tensor) -> Tensor:
    """Return whether the energy is still rising at the end: its peak there, twice the mean of all before or more."""
    width = edges.diff().double()
    middle = int((edges[1:] <= edges[-1] // 4).sum())
    if middle == 0:
        return torch.zeros(mean_square.shape[0], dtype=torch.bool, device=edges.device)
    early = (mean_square[:, :middle] @ width[:middle]) / width[:middle].sum()
    late = mean_square[:, -2:].amax(1)
    peak = mean_square.amax(1)
    return (late >= peak) & (late > 2 * early) & (late > 2 * mean_square[:, 0])


def _compare_group(
    edges: Tensor, mean_square: Tensor, floor: Tensor, comparison: DecayComparison, index: Tensor, smooth: bool
) -> None:
    width = edges.diff().double()[None]
    bins = torch.ones_like(width)
    if not smooth:
        mean_square, floor, width, bins = _pool(mean_square, floor, width)
    # Pooled energy never rises, so what is above the noise is one window from the first lag on.
    above = ((mean_square > NOISE_MARGIN * floor) & (mean_square > _SMALLEST)).cummin(1).values
    end = width.cumsum(1)
    last = (end * above).amax(1) + int(edges[0]) - 1
    profile = Profile(
        lag=end - (width + 1) / 2 + int(edges[0]),
        width=width,
        log_rms=torch.where(above, 0.5 * mean_square.clamp(min=_SMALLEST).log(), 0.0),
        weight=above * bins,
        last=last,
        pooled=not smooth,
    )
    fits = {Law(law): fit for law, fit in fit_laws(profile, edges).items()}
    law, status = _judge(profile, fits, int(edges[0]), int(edges[-1]) - 1)
    short = profile.weight.sum(1) < FEWEST_BINS
    few = (profile.weight > 0).sum(1) < FEWEST_BINS
    enough = ~short & (~few | (law == LAWS.index(Law.FLAT)))
    for mark, where in (
        (DecayStatus.UNRESOLVED, ~enough & few),
        (DecayStatus.TOO_FEW, ~enough & short),
        (DecayStatus.SHORT_MEMORY, ~enough & short & (last < 2 * FEWEST_BINS)),
    ):
        status[where] = STATUSES.index(mark)
    law[~enough] = LAWS.index(Law.UNDETERMINED)
    comparison.law[index], comparison.status[index], comparison.fitted[index] = law, status, enough
    index = index[enough]
    comparison.first[index], comparison.last[index] = int(edges[0]), last[enough].long()
    for name, fit in fits.items():
        for field in fields(LawFit):
            getattr(comparison.fits[name], field.name)[index] = getattr(fit, field.name)[enough]


def _pool(mean_square: Tensor, floor: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean square, floor, lags and bins of the blocks of the best non-rising fit to the energy.

    Neighbouring bins that rise are pooled until none does (isotonic regression): energy is conserved, an oscillation's
    notches join the crest that follows them, and a decaying kernel is left as it is. Blocks beyond a channel's last
    have width 1 and energy 0.
    """
    channels, count = mean_square.shape
    block = torch.arange(count, device=width.device).expand(channels, count).clone()
    energy, noise = mean_square * width, floor * width
    mean = mean_square.clone()
    active = torch.arange(channels, device=width.device)
    lags = width.expand(channels, count)
    while active.numel():
        falls = torch.ones_like(mean, dtype=torch.bool)
        falls[:, 1:] = mean[:, 1:] <= mean[:, :-1] * (1 + 1e-9)
        moved = falls.cumsum(1) - 1
        again = ~falls.all(1)
        active, moved = active[again], moved[again]
        block[active] = moved.gather(1, block[active])
        own = block[active]
        total = torch.zeros_like(energy[active]).scatter_add_(1, own, energy[active])
        wide = torch.zeros_like(total).scatter_add_(1, own, lags[active])
        mean = total / wide.clamp(min=1)
    blank = torch.zeros_like(energy)
    wide = blank.scatter_add(1, block, lags)
    kept = wide.clamp(min=1)
    bins = blank.scatter_add(1, block, torch.ones_like(energy))
    return blank.scatter_add(1, block, energy) / kept, blank.scatter_add(1, block, noise) / kept, kept, bins


def _judge(profile: Profile, fits: Mapping[Law, LawFit], first: int, end: int) -> tuple[Tensor, Tensor]:
    """Return index of law and status by the rule this module opens with."""
    residual = {law: NEPER_DB * fit.residual for law, fit in fits.items()}
    flat, exponential, power, cut = (residual[law] for law in _FITTED_LAWS)
    span = profile.last - first
    blocks = (profile.weight > 0).sum(1)

    def holds(other: Tensor, parameters: int) -> Tensor:
        """Whether a law is not clearly worse than the truncated one, which has `parameters` more."""
        # Neighbouring residuals go together; twice the 5% point of F stands in for that.
        allowance = 1 + 8 * parameters / (blocks - 4).clamp(min=1)
        return other**2 + MODEL_ERROR_DB**2 <= allowance * (cut**2 + MODEL_ERROR_DB**2)

    rate, polynomial, truncated = fits[Law.EXPONENTIAL], fits[Law.POLYNOMIAL], fits[Law.TRUNCATED]
    drop = NEPER_DB * rate.rate * span
    # A memory that stops at once is level up to there, but does not stay.
    is_flat = (profile.last == end) & (flat <= FLAT_DB) & (drop <= 4 * FLAT_DB)
    same = (truncated.rate - rate.rate).abs() <= SAME_RATE * rate.rate
    exponential_wins = (
        (holds(exponential, 2) | (same & (cut > POWER_DB)))
        & (rate.rate_error <= RATE_ERROR * rate.rate)
        & ((blocks >= RIPPLED_BLOCKS) | (exponential <= POWER_DB))
        & (exponential <= EXPONENTIAL_DB)
        & (drop >= torch.clamp(8 * exponential, min=EXPONENTIAL_DROP_DB))
        & (power >= torch.clamp(CONTRAST * exponential, min=0.5))
    )

    def decades(fit: LawFit) -> Tensor:
        return ((profile.last + fit.offset) / (first + fit.offset)).log10()

    polynomial_wins = (
        holds(power, 1)
        & (power <= POWER_DB)
        & (polynomial.exponent >= SMALLEST_EXPONENT)
        & (decades(polynomial) >= POWER_DECADES)
        & (exponential >= torch.clamp(3 * power, min=1.0))
    )
    power_drop = NEPER_DB * truncated.exponent * math.log(10) * decades(truncated)
    cut_drop = NEPER_DB * truncated.rate * span
    truncated_wins = (
        (cut <= TRUNCATED_DB)
        & ~holds(exponential, 2)
        & ~holds(power, 1)
        & (truncated.exponent >= SMALLEST_EXPONENT)
        & (decades(truncated) >= 1.0)
        & (power_drop >= 3.0)
        & (cut_drop >= 3.0)
        & (torch.minimum(exponential, power) >= torch.clamp(4 * cut, min=0.3))
    )
    law = torch.full_like(blocks, LAWS.index(Law.UNDETERMINED))
    status = torch.full_like(blocks, STATUSES.index(DecayStatus.INDISTINCT))
    status[torch.minimum(exponential - EXPONENTIAL_DB, cut - TRUNCATED_DB) > 0] = STATUSES.index(DecayStatus.NO_LAW)
    for name, wins in (
        (Law.TRUNCATED, truncated_wins),
        (Law.POLYNOMIAL, polynomial_wins),
        (Law.EXPONENTIAL, exponential_wins),
        (Law.FLAT, is_flat),
    ):
        law[wins] = LAWS.index(name)
        status[wins] = STATUSES.index(DecayStatus.FITTED)
    return law, status
