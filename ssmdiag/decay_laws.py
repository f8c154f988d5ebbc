"""The laws a memory kernel may follow, fitted to its binned energy for every channel at once.

    log e(t) = a − p log(1 + t/t₀) − β t,     p ≥ 0, β ≥ 0

e is the rms envelope and the data are mean squares over bins of lags, so what is compared is the mean square of the
*law* over the same bin, in logarithms. Over a bin of w lags around t the exponent is close to a straight line of
slope γ = β + p s, with s the slope of log(1 + t/t₀), and the mean of an exponential over w equidistant lags is known:

    ½ log mean e² = a − p ⟨log(1 + t/t₀)⟩ − β t + h,     h = ½ log( sinh(γw) / (w sinh γ) )

Exact for an exponential whatever the width of the bin; for a power law the error is of third order in w/(t + t₀).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRID_POINTS = 24
SHORTEST_OFFSET = 0.25
"""Steps. A smaller t₀ is pinned down by lag 0 alone."""
OFFSET_SHARE = 10.0
"""t₀ is at most a tenth of the last lag: a power law whose bend lies beyond is any smooth curve."""
ROUNDS = 5
PARAMETERS = {
    "flat": (),
    "exponential": ("rate",),
    "polynomial": ("exponent", "offset"),
    "truncated": ("exponent", "rate", "offset"),
}
"""What each law leaves free, beside its amplitude."""
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


def fit_laws(profile: Profile, edges: Tensor) -> dict[str, LawFit]:
    """Return the flat, exponential, polynomial and truncated fit of every channel.

    A grid over t₀ is linear least squares with two signs, solved in closed form; the moments at all its points are two
    matrix products. Gauss–Newton steps on the binned law start from its best point.
    """
    starts = _grid(profile, edges)
    fits = {law: _refine(profile, starts[law], free) for law, free in PARAMETERS.items()}
    # The family is nested: where a smaller law ended lower, it is the truncated law's best as well.
    best = fits["truncated"]
    for smaller in (fits["exponential"], fits["polynomial"]):
        lower = smaller.residual < best.residual
        best = LawFit(**{name: torch.where(lower, getattr(smaller, name), value) for name, value in vars(best).items()})
    return fits | {"truncated": best}


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
    forbidden = offsets > (profile.last[:, None] / OFFSET_SHARE).clamp(min=2 * SHORTEST_OFFSET)
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
    order = [("exponent", "rate", "offset").index(name) for name in free]
    scale = profile.last.clamp(min=1)
    bound = (profile.last / OFFSET_SHARE).clamp(min=2 * SHORTEST_OFFSET).log()
    low = torch.stack(
        [torch.zeros_like(scale), torch.zeros_like(scale), torch.full_like(scale, SHORTEST_OFFSET).log()], 1
    )
    high = torch.stack([torch.full_like(scale, 50.0), torch.full_like(scale, 1e4), bound], 1)
    kept = torch.stack([start[:, 0], start[:, 1] * scale, start[:, 2].log()], 1).clamp(low, high)
    amplitude, squares, matrix, vector = _normal_equations(profile, kept, scale, free)
    damping = torch.full_like(scale, 1e-6)
    for _ in range(ROUNDS if free else 0):
        # A parameter at its bound that wants to leave the allowed side is held for this step.
        at = kept[:, order]
        held = ((at <= low[:, order]) & (vector < 0)) | ((at >= high[:, order]) & (vector > 0))
        step = _solve(matrix, vector, damping, held).clamp(-5, 5)
        trial = kept.clone()
        trial[:, order] = at + step
        if "offset" in free:
            trial[:, 2] = kept[:, 2] + step[:, -1].clamp(-1.5, 1.5)
        trial = trial.clamp(low, high)
        new = _normal_equations(profile, trial, scale, free)
        better = new[1] <= squares
        kept = torch.where(better[:, None], trial, kept)
        amplitude, squares = torch.where(better, new[0], amplitude), torch.where(better, new[1], squares)
        matrix = torch.where(better[:, None, None], new[2], matrix)
        vector = torch.where(better[:, None], new[3], vector)
        damping = torch.where(better, damping * 0.1, (damping * 100).clamp(min=1e-2))
    errors = torch.zeros_like(kept)
    total = profile.weight.sum(1)
    blocks = (profile.weight > 0).sum(1)
    if free:
        held = torch.zeros_like(vector, dtype=torch.bool)
        identity = torch.eye(len(free), dtype=torch.float64, device=scale.device)
        variance = squares * total / (blocks - len(free) - 1).clamp(min=1) / total.clamp(min=1)
        for column, name in enumerate(order):
            unit = identity[column].expand_as(vector)
            curvature = _solve(matrix, unit, torch.zeros_like(scale), held)[:, column]
            errors[:, name] = (variance * total * curvature.clamp(min=0) / total.clamp(min=1)).sqrt()
    offset = kept[:, 2].exp()
    return LawFit(
        amplitude=amplitude,
        exponent=kept[:, 0],
        rate=kept[:, 1] / scale,
        offset=offset,
        residual=squares.sqrt(),
        exponent_error=errors[:, 0],
        rate_error=errors[:, 1] / scale,
        offset_error=errors[:, 2] * offset,
    )


def _normal_equations(
    profile: Profile, state: Tensor, scale: Tensor, free: tuple[str, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a, the mean squared residual, JᵀJ and Jᵀr (weighted means, a projected out) at p, β t_last, log t₀."""
    law, columns = binned_law(
        profile.lag, profile.width, state[:, :1], state[:, 1:2] / scale[:, None], state[:, 2:].exp(), free
    )
    share = profile.weight / profile.weight.sum(1, keepdim=True).clamp(min=1)
    residual = profile.log_rms - law
    amplitude = (share * residual).sum(1, keepdim=True)
    residual = residual - amplitude
    weighted = share * residual
    squares = (weighted * residual).sum(1)
    if "rate" in free:
        index = free.index("rate")
        columns[index] = columns[index] / scale[:, None]
    shared = [share * column for column in columns]
    means = [column.sum(1) for column in shared]
    size = len(columns)
    matrix = law.new_zeros(law.shape[0], size, size)
    vector = law.new_zeros(law.shape[0], size)
    for i in range(size):
        vector[:, i] = (weighted * columns[i]).sum(1)
        for j in range(i + 1):
            matrix[:, i, j] = matrix[:, j, i] = (shared[i] * columns[j]).sum(1) - means[i] * means[j]
    return amplitude[:, 0], squares, matrix, vector


def binned_law(
    lag: Tensor, width: Tensor, exponent: Tensor, rate: Tensor, offset: Tensor, free: tuple[str, ...] = ()
) -> tuple[Tensor, list[Tensor]]:
    """Return ½ log of the mean square of (1 + t/t₀)^−p e^−βt over each block, and its derivatives.

    All broadcast, the parameters as (channel, 1) against (channel, block). Derivatives are by p, β and log t₀,
    those in `free`.
    """
    if free in (("rate",), ()):
        bend, by_slope = _bin_average(rate.clamp(min=1e-9), width)
        return bend - rate * lag, [by_slope - lag] if free else []
    # Two points one standard deviation either side of the mean average any cubic over the block exactly.
    spread = ((width * width - 1) / 12).sqrt()
    half = 0.5 / spread.clamp(min=0.1)
    above, below = (lag + spread) / offset, (lag - spread).clamp(min=0) / offset
    log_above, log_below = above.log1p(), below.log1p()
    mean, line = (log_above + log_below) * 0.5, (log_above - log_below) * half
    bend, by_slope = _bin_average((rate + exponent * line).clamp(min=1e-9), width)
    law = bend - exponent * mean - rate * lag
    above, below = above / (1 + above), below / (1 + below)
    by_offset = exponent * ((above + below) * 0.5 - by_slope * (above - below) * half)
    derivatives = {"exponent": by_slope * line - mean, "rate": by_slope - lag, "offset": by_offset}
    return law, [derivatives[name] for name in free]


def _bin_average(slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return h = ½ log(sinh(γw) / (w sinh γ)) and dh/dγ."""
    wide, single = torch.expm1(-2 * slope * width), torch.expm1(-2 * slope)
    bend = 0.5 * (slope * (width - 1) + (wide / (width * single)).log())
    return bend, 0.5 * (1 - width) + 1 / single - width / wide


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
