"""The laws a memory kernel may follow, fitted to its binned energy for every channel at once.

    log e(t) = a − p log(1 + t/t₀) − β t,     p ≥ 0, β ≥ 0

e is the rms envelope and the data are mean squares over bins of lags, so what is compared is the mean square of the
*law* over the same bin, in logarithms. Over a bin of w lags around t the exponent is close to a straight line of
slope γ = β + p s, with s the slope of log(1 + t/t₀), and the mean of an exponential over w equidistant lags is known:

    ½ log mean e² = a − p ⟨log(1 + t/t₀)⟩ − β t + h,     h = ½ log( sinh(γw) / (w sinh γ) )

Exact for an exponential whatever the width of the bin; for a power law the error is of third order in w/(t + t₀).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

GRID_POINTS = 24
SHORTEST_OFFSET = 0.25
"""Steps. A smaller t₀ is pinned down by lag 0 alone."""
OFFSET_SHARE = 10.0
"""t₀ is at most a tenth of the last lag: a power law whose bend lies beyond is any smooth curve."""
ROUNDS = 4
SLICE = 2048
"""Channels fitted together."""
CONVERGED = 0.05
"""A step that lowers the mean squared residual by less than this share was the last."""
EXPLAINED = 1e-3
"""Rms residual, nats, at which a law is all there is: 0.01 dB."""
NEGLIGIBLE = 1e-11
"""Mean squared residual, nats², below which no step is taken: 0.00003 dB."""
PARAMETERS = {
    "flat": (),
    "exponential": ("rate",),
    "polynomial": ("exponent", "offset"),
    "truncated": ("exponent", "rate", "offset"),
}
"""What each law leaves free, beside its amplitude."""
_NAMES = ("exponent", "rate", "offset")
_TINY = 1e-300


@dataclass(frozen=True)
class Profile:
    """Blocks of neighbouring lags and their energy; a block of weight 0 is outside the window."""

    lag: Tensor
    """Mean lag of the block, steps: (channel, block), or (1, block) where all channels share their blocks."""
    width: Tensor
    """Lags in the block, shaped as `lag`."""
    log_rms: Tensor
    """½ log of the mean square, (channel, block); 0 outside the window."""
    weight: Tensor
    """Bins pooled into the block, (channel, block)."""
    last: Tensor
    """Last lag of the window, (channel,)."""
    pooled: bool
    """Whether the blocks are each channel's own, made of several bins."""

    @cached_property
    def share(self) -> Tensor:
        """Weights that add up to 1, (channel, block)."""
        return self.weight / self.weight.sum(1, keepdim=True).clamp(min=1)

    @cached_property
    def root_share(self) -> Tensor:
        return self.share.sqrt()

    def at(self, channels: Tensor) -> Profile:
        """Return the profile of some channels, chosen by a mask."""
        own = self.pooled
        part = Profile(
            lag=self.lag[channels] if own else self.lag,
            width=self.width[channels] if own else self.width,
            log_rms=self.log_rms[channels],
            weight=self.weight[channels],
            last=self.last[channels],
            pooled=own,
        )
        # Dividing and taking roots again would cost as much as a step saves.
        if "share" in vars(self):
            vars(part).update(share=self.share[channels], root_share=self.root_share[channels])
        return part

    def cut(self, blocks: int) -> Profile:
        """Return the profile without the blocks from `blocks` on, in float32 for the steps.

        Laws are taken in logarithms, where float32 is good to a millionth of a neper; a thousandth is asked for.
        """
        return replace(
            self,
            lag=self.lag[:, :blocks].float().contiguous(),
            width=self.width[:, :blocks].float().contiguous(),
            log_rms=self.log_rms[:, :blocks].float().contiguous(),
            weight=self.weight[:, :blocks].float().contiguous(),
        )


@dataclass(frozen=True)
class LawFit:
    """One law fitted to every channel; every field is (channel,) float64."""

    amplitude: Tensor
    """a = log e(0)."""
    exponent: Tensor
    rate: Tensor
    """Nats per step."""
    offset: Tensor
    """t₀ in steps."""
    residual: Tensor
    """Root mean square of the residual over the window, nats."""
    exponent_error: Tensor
    rate_error: Tensor
    offset_error: Tensor
    """Standard errors from the residual and the curvature in all free parameters at once; 0 where not free."""


_FIELDS = tuple(field.name for field in fields(LawFit))


def fit_laws(profile: Profile, edges: Tensor) -> dict[str, LawFit]:
    """Return the flat, exponential, polynomial and truncated fit of every channel.

    A grid over t₀ is linear least squares with two signs, solved in closed form; the moments at all its points are two
    matrix products. Gauss–Newton steps on the binned law start from its best point.
    """
    starts = _grid(profile, edges)
    # Channels with windows of one length together: what is outside all of them is not computed.
    used = (profile.weight > 0).sum(1)
    order = used.argsort()
    parts = []
    for rows in order.split(SLICE):
        part = profile.at(rows).cut(max(int(used[rows[-1]]), 1))
        fits = {law: _refine(part, starts[law][rows], free) for law, free in PARAMETERS.items() if law != "truncated"}
        parts.append(fits | {"truncated": _largest(part, starts["truncated"][rows], fits)})
    back = order.argsort()
    return {
        law: LawFit(**{name: torch.cat([vars(part[law])[name] for part in parts])[back] for name in _FIELDS})
        for law in PARAMETERS
    }


def _largest(profile: Profile, start: Tensor, fits: Mapping[str, LawFit]) -> LawFit:
    """Return the truncated fit, never worse than the exponential or polynomial one nested in it."""
    names = {name: vars(fits["polynomial"])[name].clone() for name in _FIELDS}
    lower = fits["exponential"].residual < names["residual"]
    names = {name: torch.where(lower, vars(fits["exponential"])[name], value) for name, value in names.items()}
    # Where one of them leaves nothing to explain, a further parameter has nothing to do.
    left = (names["residual"] > EXPLAINED).nonzero()[:, 0]
    fit = _refine(profile.at(left), start[left], PARAMETERS["truncated"])
    better = fit.residual < names["residual"][left]
    for name, value in names.items():
        value[left[better]] = vars(fit)[name][better]
    return LawFit(**names)


def _grid(profile: Profile, edges: Tensor) -> dict[str, Tensor]:
    """Return (p, β, t₀) as (channel, 3) for each law to start from, taking the law at the middle of each bin."""
    longest = float(edges[-1])
    lag = (edges[:-1] + edges[1:] - 1).double() / 2
    top = max(longest / OFFSET_SHARE, 2 * SHORTEST_OFFSET)
    position = torch.linspace(0, 1, GRID_POINTS, dtype=torch.float64, device=lag.device)
    offsets = SHORTEST_OFFSET * (top / SHORTEST_OFFSET) ** position
    weight, y = profile.weight, profile.log_rms
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
    total, sum_t, sum_tt, sum_l, sum_ll, sum_lt = (
        weight @ torch.cat([one, t, t * t, bend, bend * bend, bend * t], 1)
    ).split([1, 1, 1, GRID_POINTS, GRID_POINTS, GRID_POINTS], 1)
    sum_y, sum_ty, sum_ly = (weighted @ torch.cat([one, t, bend], 1)).split([1, 1, GRID_POINTS], 1)
    inverse = 1 / total.clamp(min=1)
    mean_t, mean_l, mean_y = sum_t * inverse, sum_l * inverse, sum_y * inverse
    tt = (sum_tt * inverse - mean_t**2).clamp(min=_TINY)
    ll = (sum_ll * inverse - mean_l**2).clamp(min=_TINY)
    lt = sum_lt * inverse - mean_l * mean_t
    ty = mean_t * mean_y - sum_ty * inverse
    ly = mean_l * mean_y - sum_ly * inverse
    # Four active sets: neither, rate alone, exponent alone, both.
    rate = ty.clamp(min=0) / tt
    exponent = ly.clamp(min=0) / ll
    determinant = (ll * tt - lt * lt).clamp(min=_TINY)
    p = (ly * tt - ty * lt) / determinant
    b = (ty * ll - ly * lt) / determinant
    inside = (p > 0) & (b > 0)
    forbidden = offsets > _longest_offset(profile.last)[:, None]
    alone = exponent * ly
    power = alone.masked_fill(forbidden, -1).argmax(1, keepdim=True)
    gain = torch.where(inside, p * ly + b * ty, alone).masked_fill(forbidden, -1)
    both = gain.argmax(1, keepdim=True)
    zero = torch.zeros_like(rate)
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


def _refine(profile: Profile, start: Tensor, free: tuple[str, ...]) -> LawFit:
    """Return the law after damped Gauss–Newton steps in p, β t_last and log t₀; a step uphill is taken back."""
    scale = profile.last.clamp(min=1)
    low, high = torch.zeros_like(start), torch.full_like(start, 1e4)
    low[:, 2] = math.log(SHORTEST_OFFSET)
    high[:, 0], high[:, 2] = 50.0, _longest_offset(profile.last).log()
    kept = torch.stack([start[:, 0], start[:, 1] * scale, start[:, 2].log()], 1).clamp(low, high)
    order = [_NAMES.index(name) for name in free]
    stride = torch.tensor([2.0, 1e3, 1.5], dtype=torch.float64, device=scale.device)[order]
    moments = _moments(profile, kept, free)
    damping = torch.full_like(scale, 1e-6)
    active = torch.arange(scale.numel(), device=scale.device)
    part = profile
    for _ in range(ROUNDS if free else 0):
        at, now, damp, bottom, top = kept[active], moments[active], damping[active], low[active], high[active]
        matrix, vector = _system(now, len(free))
        values = at[:, order]
        # A parameter at its bound that wants to leave the allowed side is held for this step.
        held = ((values <= bottom[:, order]) & (vector < 0)) | ((values >= top[:, order]) & (vector > 0))
        trial = at.clone()
        trial[:, order] = values + _solve(matrix, vector, damp, held).clamp(-stride, stride)
        trial = trial.clamp(bottom, top)
        new = _moments(part, trial, free)
        better = new[:, 0] <= now[:, 0]
        kept[active] = torch.where(better[:, None], trial, at)
        moments[active] = torch.where(better[:, None], new, now)
        damping[active] = torch.where(better, damp * 0.1, (damp * 100).clamp(min=1e-2))
        # Most channels are done after two steps; the others go on without them.
        go = (new[:, 0] < now[:, 0] * (1 - CONVERGED)) & (new[:, 0] > NEGLIGIBLE) | ~better & (damp < 0.5)
        if not bool(go.any()):
            break
        if not bool(go.all()):
            active, part = active[go], part.at(go)
    errors = _errors(profile, moments, order) if free else torch.zeros_like(kept)
    offset = kept[:, 2].exp()
    return LawFit(
        amplitude=moments[:, 1],
        exponent=kept[:, 0],
        rate=kept[:, 1] / scale,
        offset=offset,
        residual=moments[:, 0].sqrt(),
        exponent_error=errors[:, 0],
        rate_error=errors[:, 1] / scale,
        offset_error=errors[:, 2] * offset,
    )


def _errors(profile: Profile, moments: Tensor, order: list[int]) -> Tensor:
    """Return the standard errors of p, β t_last and log t₀, (channel, 3)."""
    matrix, vector = _system(moments, len(order))
    # Residuals that go together with their neighbours count for fewer.
    correlation = (moments[:, 2] / moments[:, 0].clamp(min=_TINY)).clamp(0, 0.9)
    blocks = (profile.weight > 0).sum(1)
    independent = (blocks - len(order) - 1).clamp(min=1) * (1 - correlation) / (1 + correlation)
    errors = vector.new_zeros(vector.shape[0], 3)
    nothing = torch.zeros_like(vector, dtype=torch.bool)
    for row, name in enumerate(order):
        unit = torch.zeros_like(vector)
        unit[:, row] = 1
        curvature = _solve(matrix, unit, torch.zeros_like(correlation), nothing)[:, row]
        errors[:, name] = (moments[:, 0] / independent * curvature.clamp(min=0)).sqrt()
    return errors


def _longest_offset(last: Tensor) -> Tensor:
    return (last / OFFSET_SHARE).clamp(min=2 * SHORTEST_OFFSET)


def _moments(profile: Profile, state: Tensor, free: tuple[str, ...]) -> Tensor:
    """Return what one step needs at p, β t_last, log t₀, the amplitude projected out, as (channel, 3 + k + k²).

    Mean squared residual, amplitude, mean product of neighbouring residuals, Jᵀr and JᵀJ by rows.
    """
    scale = profile.last.clamp(min=1)[:, None]
    exponent, rate, offset = (state[:, :1], state[:, 1:2] / scale, state[:, 2:].exp())
    law, columns = binned_law(profile.lag, profile.width, exponent.float(), rate.float(), offset.float(), free)
    rows = torch.stack([profile.log_rms - law, *columns], 1)
    shared = rows * profile.share[:, None]
    means = shared.sum(2)
    products = (shared @ rows.mT).double()
    centred = (rows[:, 0] - means[:, :1]).mul_(profile.root_share)
    neighbours = (centred[:, 1:] * centred[:, :-1]).sum(1).double()
    squares = (centred * centred).sum(1).double()
    means = means.double()
    products -= means[:, :, None] * means[:, None]
    if "rate" in free:
        row = 1 + free.index("rate")
        products[:, row] /= scale
        products[:, :, row] /= scale
    head = torch.stack([squares, means[:, 0], neighbours], 1)
    return torch.cat([head, products[:, 1:].flatten(1)], 1)


def _system(moments: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return JᵀJ and Jᵀr out of `_moments`."""
    rows = moments[:, 3:].reshape(-1, size, size + 1)
    return rows[:, :, 1:], rows[:, :, 0]


def binned_law(
    lag: Tensor, width: Tensor, exponent: Tensor, rate: Tensor, offset: Tensor, free: tuple[str, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Return ½ log of the mean square of (1 + t/t₀)^−p e^−βt over each block, and its derivatives.

    All broadcast, the parameters as (channel, 1) against (channel, block). Derivatives are by p, β and log t₀,
    those in `free`; without p among them the law is taken as exponential.
    """
    # A slope of nothing over the whole window; 0 itself would divide by 0.
    least = 1e-3 / (lag[:, -1:] + 1)
    if "exponent" not in free:
        bend, by_slope = _bin_average(torch.maximum(rate, least), width)
        return bend - rate * lag, [by_slope - lag] if free else []
    # Two points one standard deviation either side of the mean average any cubic over the block exactly.
    spread = ((width * width - 1) / 12).sqrt()
    half = 0.5 / spread.clamp(min=0.1)
    inverse = 1 / offset
    above, below = (lag + spread).mul(inverse).add_(1), (lag - spread).clamp(min=0).mul(inverse).add_(1)
    log_above, log_below = above.log(), below.log()
    mean, line = (log_above + log_below).mul_(0.5), (log_above - log_below).mul_(half)
    if "rate" in free or width.shape[0] > 1:
        slope = torch.maximum(torch.addcmul(rate, exponent, line), least)
        bend, by_slope = _bin_average(slope, width)
    else:
        bend, by_slope = _gentle_average(exponent * line, width)
    law = torch.addcmul(torch.addcmul(bend, exponent, mean, value=-1), rate, lag, value=-1)
    above, below = above.reciprocal_(), below.reciprocal_()
    by_offset = (
        (above + below).mul_(-0.5).add_(1).addcmul_(by_slope, (below - above).mul_(half), value=-1).mul_(exponent)
    )
    derivatives = {"exponent": torch.addcmul(mean, by_slope, line, value=-1).neg_(), "offset": by_offset}
    if "rate" in free:
        derivatives["rate"] = by_slope - lag
    return law, [derivatives[name] for name in free]


def _bin_average(slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return h = ½ log(sinh(γw) / (w sinh γ)) and dh/dγ."""
    one = torch.expm1(-2 * slope).reciprocal_()
    wide = torch.expm1(slope * (-2 * width)).div_(width)
    bend = torch.addcmul((wide * one).log_(), slope, width - 1).mul_(0.5)
    return bend, (one - wide.reciprocal_()).add_((1 - width) * 0.5)


def _gentle_average(slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by the series of log(sinh x / x), enough for γw up to 1.5: a power law over a log-spaced bin."""
    inverse = width**-2
    product = (slope * width).clamp_(max=1.5)
    squared = product * product
    second, fourth, sixth = (1 - inverse) / 12, (inverse**2 - 1) / 360, (1 - inverse**3) / 5670
    bend = torch.addcmul(fourth, squared, sixth).mul_(squared).add_(second).mul_(squared)
    by_slope = torch.addcmul(4 * fourth, squared, 6 * sixth).mul_(squared).add_(2 * second).mul_(product).mul_(width)
    return bend, by_slope


def _solve(matrix: Tensor, vector: Tensor, damping: Tensor, held: Tensor) -> Tensor:
    """Return the solutions of symmetric systems of up to three unknowns; those held are 0."""
    free = (~held).double()
    matrix = matrix * free[:, :, None] * free[:, None, :]
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    floor = 1e-12 * diagonal.amax(1, keepdim=True) + _TINY
    matrix = matrix + torch.diag_embed(diagonal * damping[:, None] + floor + held)
    vector = vector * free
    # Unit diagonal, so that the closed form loses nothing to the scales of the parameters.
    root = matrix.diagonal(dim1=1, dim2=2).rsqrt()
    m, v = matrix * root[:, :, None] * root[:, None, :], vector * root
    if m.shape[1] == 1:
        return v * root
    if m.shape[1] == 2:
        c = m[:, 0, 1]
        return (
            torch.stack([v[:, 0] - c * v[:, 1], v[:, 1] - c * v[:, 0]], 1)
            / (1 - c * c).clamp(min=1e-12)[:, None]
            * root
        )
    a, b, c = m[:, 0, 1], m[:, 0, 2], m[:, 1, 2]
    determinant = (1 + 2 * a * b * c - a * a - b * b - c * c).clamp(min=1e-12)
    x = (1 - c * c) * v[:, 0] + (b * c - a) * v[:, 1] + (a * c - b) * v[:, 2]
    y = (b * c - a) * v[:, 0] + (1 - b * b) * v[:, 1] + (a * b - c) * v[:, 2]
    z = (a * c - b) * v[:, 0] + (a * b - c) * v[:, 1] + (1 - a * a) * v[:, 2]
    return torch.stack([x, y, z], 1) / determinant[:, None] * root
