"""Which law a memory kernel decays by, over which lags, and how sure that is: for every channel at once.

A finite recurrence is exponential in the end, always. The question with an answer is which law holds over the lags
that matter: from 0 to the context, or to where the kernel sinks into the arithmetic's noise. That window is part of
every verdict.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssmdiag.cores import one_thread, share_out
from ssmdiag.decay.comparison import ChannelDecay, DecayComparison, blank_comparison
from ssmdiag.decay.gauss_newton import LawFit, fit_laws
from ssmdiag.decay.grid import OFFSET_SHARE
from ssmdiag.decay.profile import Profile, pool_rising
from ssmdiag.decay.verdict import EXPONENTIAL_DB, LAWS, NEPER_DB, STATUSES, DecayStatus, Law, judge

__all__ = [
    "LAWS",
    "NEPER_DB",
    "NOISE_MARGIN",
    "STATUSES",
    "ChannelDecay",
    "DecayComparison",
    "DecayStatus",
    "Law",
    "compare_decay",
]

NOISE_MARGIN = 1000.0
"""A bin counts where its mean square is 30 dB above the floor, so that noise bends it by a quarter dB at most."""
FEWEST_BINS = 6
LEVEL_DB = 0.5
"""Largest difference between the octaves of a kernel that does not decay."""
CHUNK = 16384
_SMALLEST = 1e-290


@one_thread()
def compare_decay(
    edges: Tensor, mean_square: Tensor, floor: Tensor | float, *, context: int, offset_share: float = OFFSET_SHARE
) -> DecayComparison:
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
        Lags that matter; printed with the window, and not used otherwise.
    offset_share
        t₀ is at most the last lag of the window divided by this; 1 where the law is known already.

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
    comparison, tables = blank_comparison(mean_square.shape[0], context, mean_square.device)

    def compare(start: int) -> None:
        chunk = slice(start, start + CHUNK)
        _compare_chunk(edges, mean_square[chunk].double(), floor[chunk], comparison, tables, start, offset_share)

    share_out(compare, range(0, mean_square.shape[0], CHUNK), mean_square.device)
    return comparison


def _compare_chunk(
    edges: Tensor,
    mean_square: Tensor,
    floor: Tensor,
    comparison: DecayComparison,
    tables: Mapping[Law, Tensor],
    start: int,
    offset_share: float,
) -> None:
    """Write the laws of channels `start` onwards into the comparison."""
    status = comparison.status[start : start + mean_square.shape[0]]
    # One sum shows whether anything in a row is not finite.
    broken = ~(mean_square.sum(1) + floor.sum(1)).isfinite()
    # An infinity without NaN is a kernel that overflowed.
    overflow = broken.clone()
    overflow[broken] &= ~(mean_square[broken].isnan() | ~floor[broken].isfinite()).any(1)
    overflow[broken] &= mean_square[broken, 0].isfinite()
    zero = ~broken & (mean_square <= NOISE_MARGIN * floor).all(1)
    rising = _grows(edges, mean_square)
    for mark, where in (
        (DecayStatus.ZERO, zero),
        (DecayStatus.TINY, zero & (mean_square > 0).any(1)),
        (DecayStatus.NOT_FINITE, broken),
        (DecayStatus.GROWS, overflow | (rising & ~broken & ~zero)),
    ):
        status[where] = STATUSES.index(mark)
    left = ~(broken | zero | rising)
    if edges.numel() <= FEWEST_BINS:
        status[left] = STATUSES.index(DecayStatus.SHORT_CONTEXT)
        return
    # Channels whose energy never rises share their bins, so the law's averages are computed once for all of them.
    smooth = (mean_square[:, 1:] <= mean_square[:, :-1] * (1 + 1e-9)).all(1)
    for group in (left & smooth, left & ~smooth):
        index = group.nonzero()[:, 0]
        if not index.numel():
            continue
        own = mean_square[index], floor[index], bool(smooth[index[0]])
        law, why, last, fitted, fits = _fit_group(edges, *own, offset_share)
        first = _risen(edges, own[0], law, fits)[fitted]
        index = index + start
        comparison.law[index], comparison.status[index], comparison.fitted[index] = law, why, fitted
        index = index[fitted]
        comparison.first[index], comparison.last[index] = first, last[fitted]
        for name, table in fits.items():
            tables[name][:, index] = table[fitted].T


def _grows(edges: Tensor, mean_square: Tensor) -> Tensor:
    """Return whether the energy is still rising at the end: its peak there, twice the mean of all before or more."""
    width = edges.diff().double()
    middle = int((edges[1:] <= edges[-1] // 4).sum())
    if middle == 0:
        return torch.zeros(mean_square.shape[0], dtype=torch.bool, device=edges.device)
    early = (mean_square[:, :middle] * width[:middle]).sum(1) / width[:middle].sum()
    late = mean_square[:, -2:].amax(1)
    peak = mean_square.amax(1)
    return (late >= peak) & (late > 2 * early) & (late > 2 * mean_square[:, 0])


def _risen(edges: Tensor, mean_square: Tensor, law: Tensor, fits: Mapping[Law, Tensor]) -> Tensor:
    """Return the lag up to which each kernel rises to its law, (channel,): all bins before are too far below it."""
    lag = (edges[:-1] + edges[1:] - 1).double() / 2
    below = torch.zeros_like(mean_square, dtype=torch.bool)
    for name, table in fits.items():
        rows = law == LAWS.index(name)
        fit = LawFit(*table[rows].T[..., None])
        power = fit.exponent * (lag / fit.offset.clamp(min=1e-12)).log1p()
        level = 0.5 * mean_square[rows].clamp(min=_SMALLEST).log()
        below[rows] = NEPER_DB * (fit.amplitude - power - fit.rate * lag - level) > EXPONENTIAL_DB
    return edges[below.to(torch.uint8).cumprod(1).sum(1).clamp(max=len(lag) - 1)]


def _is_level(edges: Tensor, mean_square: Tensor) -> Tensor:
    """Return whether the energy is the same in the last three octaves of lags and before them, (channel,) bool.

    Pooled, a kernel that rises slowly or swings once is level too.
    """
    width = edges.diff().double()
    end = int(edges[-1])
    which = sum((edges[1:] > end // 2**k).long() for k in (1, 2, 3))
    assert isinstance(which, Tensor)
    into = torch.zeros(4, len(width), dtype=torch.float64, device=edges.device)
    into[which, torch.arange(len(width), device=edges.device)] = width
    shares = (into / into.sum(1, keepdim=True).clamp(min=1))[into.sum(1) > 0]
    means = torch.stack([(mean_square * share).sum(1) for share in shares], 1)
    return 10 * (means.amax(1) / means.amin(1)).log10() <= LEVEL_DB


def _fit_group(
    edges: Tensor, mean_square: Tensor, floor: Tensor, smooth: bool, offset_share: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[Law, Tensor]]:
    """Return law, status, last lag of the window, whether laws were fitted, and tables of the fits."""
    width = edges.diff().double()[None]
    bins = torch.ones_like(width)
    level = torch.ones(len(mean_square), dtype=torch.bool, device=edges.device)
    if not smooth:
        level = _is_level(edges, mean_square)
        mean_square, floor, width, bins = pool_rising(mean_square, floor, width)
    # Pooled energy never rises, so what is above the noise is one window from the first lag on.
    above = ((mean_square > NOISE_MARGIN * floor) & (mean_square > _SMALLEST)).cummin(1).values
    end = width.cumsum(1)
    last = (end * above).amax(1) + int(edges[0]) - 1
    weight = above * bins
    inside = weight.sum(1)
    profile = Profile(
        lag=end - (width + 1) / 2 + int(edges[0]),
        width=width,
        log_rms=torch.where(above, 0.5 * mean_square.clamp(min=_SMALLEST).log(), 0.0),
        root_weight=(weight / inside.clamp(min=1)[:, None]).sqrt(),
        last=last,
        pooled=not smooth,
        offset_share=offset_share,
    )
    found = {Law(law): fits for law, fits in fit_laws(profile, edges).items()}
    fits = {law: LawFit(*table.unbind(1)) for law, table in found.items()}
    law, status = judge(profile, fits, int(edges[0]), int(edges[-1]) - 1)
    short, few = inside < FEWEST_BINS, profile.blocks < FEWEST_BINS
    flat = law == LAWS.index(Law.FLAT)
    unclear = (few & ~short & ~flat) | (flat & ~level)
    for mark, where in (
        (DecayStatus.UNRESOLVED, unclear),
        (DecayStatus.TOO_FEW, short),
        (DecayStatus.SHORT_MEMORY, short & (last < 2 * FEWEST_BINS)),
    ):
        status[where] = STATUSES.index(mark)
    law[short | unclear] = LAWS.index(Law.UNDETERMINED)
    return law, status, last.long(), ~(short | unclear), found
