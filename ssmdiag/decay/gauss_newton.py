"""Decay laws fitted to the envelope of every channel at once, by damped Gauss–Newton steps on the binned law."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ssmdiag.decay.grid import SHORTEST_OFFSET, best_grid_points, longest_offset
from ssmdiag.decay.laws import binned_law
from ssmdiag.decay.profile import Profile

ROUNDS = 4
SLICE = 8192
"""Channels fitted together."""
CONVERGED = 0.05
"""Steps end when one lowers the mean squared residual by less than this share."""
EXPLAINED = 1e-3
"""Rms residual, nats, below which nothing is left to explain: 0.01 dB."""
NEGLIGIBLE = 1e-11
"""Mean squared residual, nats², below which no step is made: 0.00003 dB."""
HOPELESS = 5.0
"""A power law whose residual at the best grid point is this many times the exponential's is not refined."""
PARAMETERS = {
    "flat": (),
    "exponential": ("rate",),
    "polynomial": ("exponent", "offset"),
    "truncated": ("exponent", "rate", "offset"),
}
"""The free parameters of each law, besides its amplitude."""
_NAMES = ("exponent", "rate", "offset")
_TINY = 1e-300


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


_RESIDUAL = [field.name for field in fields(LawFit)].index("residual")


def fit_laws(profile: Profile, edges: Tensor) -> dict[str, Tensor]:
    """Return the flat, exponential, polynomial and truncated fit of every channel, as (channel, field of `LawFit`).

    A grid over t₀ is linear least squares with two signs, solved in closed form; the moments at all its points are two
    matrix products. Gauss–Newton steps on the binned law start from its best point.
    """
    starts = best_grid_points(profile, edges)
    # Channels with windows of equal length are fitted together, and blocks outside them are not computed. A few
    # channels keep all blocks, so that no channel's last bits depend on its neighbours' windows.
    used = profile.blocks
    order = used.argsort()
    whole = len(used) <= SLICE
    parts = []
    for rows in order.split(SLICE):
        blocks = used.new_tensor(profile.log_rms.shape[1]) if whole else used[rows[-1]]
        part, start = profile.at(rows).cut(max(int(blocks), 1)), {law: at[rows] for law, at in starts.items()}
        flat = _refine(part, start["flat"], PARAMETERS["flat"])
        exponential = _refine(part, start["exponential"], PARAMETERS["exponential"])
        most = HOPELESS * exponential[:, _RESIDUAL]
        polynomial = _refine(part, start["polynomial"], PARAMETERS["polynomial"], most)
        parts.append((flat, exponential, polynomial, _largest(part, start["truncated"], exponential, polynomial)))
    back = order.argsort()
    return {law: torch.cat(found)[back] for law, found in zip(PARAMETERS, zip(*parts, strict=True), strict=True)}


def _largest(profile: Profile, start: Tensor, exponential: Tensor, polynomial: Tensor) -> Tensor:
    """Return the truncated fit, never worse than the exponential or polynomial one nested in it."""
    lower = exponential[:, _RESIDUAL] < polynomial[:, _RESIDUAL]
    best = torch.where(lower[:, None], exponential, polynomial)
    # Where one of them leaves nothing to explain, a further parameter is useless.
    left = (best[:, _RESIDUAL] > EXPLAINED).nonzero()[:, 0]
    fit = _refine(profile.at(left), start[left], PARAMETERS["truncated"])
    better = fit[:, _RESIDUAL] < (1 - 1e-9) * best[left, _RESIDUAL]  # not by rounding alone
    best[left[better]] = fit[better]
    return best


def _refine(profile: Profile, start: Tensor, free: tuple[str, ...], most: Tensor | None = None) -> Tensor:
    """Return the law after damped Gauss–Newton steps in p, β t_last and log t₀; a step uphill is undone.

    No step is made where the residual at the start is above `most`.
    """
    scale = profile.last.clamp(min=1)
    low, high = torch.zeros_like(start), torch.full_like(start, 1e4)
    low[:, 2] = math.log(SHORTEST_OFFSET)
    high[:, 0], high[:, 2] = 50.0, longest_offset(profile).log()
    kept = torch.stack([start[:, 0], start[:, 1] * scale, start[:, 2].log()], 1).clamp(low, high)
    order = [_NAMES.index(name) for name in free]
    stride = torch.tensor([2.0, 1e3, 1.5], dtype=torch.float64, device=scale.device)[order]
    moments = _moments(profile, kept, free)
    # Copies without the channels that have converged: most have after two steps.
    active, part = torch.arange(scale.numel(), device=scale.device), profile
    at, now = kept.clone(), moments.clone()
    damping, bottom, top = torch.full_like(scale, 1e-6), low[:, order], high[:, order]
    done = now[:, 0] <= NEGLIGIBLE
    if most is not None:
        done |= now[:, 0].sqrt() > most
    for _ in range(ROUNDS if free else 0):
        matrix, vector = _system(now, len(free))
        values = at[:, order]
        # A parameter at its bound whose step would cross it is held for this step.
        held = ((values <= bottom) & (vector < 0)) | ((values >= top) & (vector > 0))
        wanted = values + _solve(matrix, vector, damping, held)
        trial = at.clone()
        trial[:, order] = torch.minimum(torch.maximum(wanted, values - stride), values + stride).clamp(bottom, top)
        free_step = (trial[:, order] == wanted).all(1)
        step = trial - at
        moved = step[:, order]
        gain = (moved * (2 * vector - (matrix @ moved[..., None])[..., 0])).sum(1)
        # A last step with almost no predicted gain is accepted without evaluation where the law is linear along it.
        last = ~done & free_step & (gain >= 0) & (gain <= CONVERGED * now[:, 0]) & (_bend(at, step) <= now[:, 0].sqrt())
        predicted = _predicted(now, moved, gain)
        at, now = torch.where(last[:, None], trial, at), torch.where(last[:, None], predicted, now)
        done |= last
        if bool(done.all()):
            break
        if bool(done.any()):
            kept[active], moments[active] = at, now
            go = ~done
            active, part, trial, free_step = active[go], part.at(go), trial[go], free_step[go]
            at, now, damping, bottom, top = at[go], now[go], damping[go], bottom[go], top[go]
        new = _moments(part, trial, free)
        better = new[:, 0] <= now[:, 0]
        won = now[:, 0] - new[:, 0]
        done = (
            better & free_step & (won <= CONVERGED * now[:, 0]) | (new[:, 0] <= NEGLIGIBLE) | ~better & (damping > 0.5)
        )
        at, now = torch.where(better[:, None], trial, at), torch.where(better[:, None], new, now)
        damping = torch.where(better, damping * 0.1, (damping * 100).clamp(min=1e-2))
    kept[active], moments[active] = at, now
    errors = _errors(profile, moments, order) if free else torch.zeros_like(kept)
    units = torch.stack([torch.ones_like(scale), 1 / scale, kept[:, 2].exp()], 1)
    kept[:, 2] = 1.0
    return torch.cat([moments[:, 1:2], kept * units, moments[:, :1].sqrt(), errors * units], 1)


def _bend(at: Tensor, step: Tensor) -> Tensor:
    """Return how far a law may depart from its tangent over a step, nats; infinite for a large step."""
    exponent, rate, offset = step.abs().unbind(1)
    small = (exponent <= 0.1) & (rate <= 0.1 * (1 + at[:, 1])) & (offset <= 0.1)
    return torch.where(small, offset * (at[:, 0] * offset + exponent) + rate * rate / 50, torch.inf)


def _predicted(moments: Tensor, step: Tensor, gain: Tensor) -> Tensor:
    """Return the moments after a step along which the law is linear; slopes and curvature stay the same."""
    size = step.shape[1]
    predicted = moments.clone()
    predicted[:, 0] -= gain
    predicted[:, 1] -= (moments[:, 3 : 3 + size] * step).sum(1)
    return predicted


def _errors(profile: Profile, moments: Tensor, order: list[int]) -> Tensor:
    """Return the standard errors of p, β t_last and log t₀, (channel, 3)."""
    matrix, _ = _system(moments, len(order))
    # Correlated residuals count for fewer.
    correlation = (moments[:, 2] / moments[:, 0].clamp(min=_TINY)).clamp(0, 0.9)
    independent = (profile.blocks - len(order) - 1).clamp(min=1) * (1 - correlation) / (1 + correlation)
    errors = moments.new_zeros(moments.shape[0], 3)
    errors[:, order] = ((moments[:, 0] / independent)[:, None] * _inverse_diagonal(matrix)).sqrt()
    return errors


def _moments(profile: Profile, state: Tensor, free: tuple[str, ...]) -> Tensor:
    """Return what one step needs at p, β t_last, log t₀, the amplitude projected out, as (channel, 3 + 2k + k²).

    Mean squared residual, amplitude, mean product of neighbouring residuals, mean derivatives, Jᵀr and JᵀJ by rows.
    """
    scale = profile.last.clamp(min=1)[:, None]
    exponent, rate, offset = (state[:, :1], state[:, 1:2] / scale, state[:, 2:].exp())
    law, columns = binned_law(profile.lag, profile.width, exponent, rate, offset, free, log_spaced=not profile.pooled)
    root = profile.root_weight
    rows = torch.stack([profile.log_rms - law, *columns], 1).mul_(root[:, None])
    means = (rows @ root[..., None])[..., 0]
    products = rows @ rows.mT
    centred = torch.addcmul(rows[:, 0], means[:, :1], root, value=-1)
    neighbours = (centred[:, 1:] * centred[:, :-1]).sum(1)
    squares = (centred * centred).sum(1)
    products -= means[:, :, None] * means[:, None]
    if "rate" in free:
        row = 1 + free.index("rate")
        products[:, row] /= scale
        products[:, :, row] /= scale
        means[:, row] /= scale[:, 0]
    head = torch.stack([squares, means[:, 0], neighbours], 1)
    return torch.cat([head, means[:, 1:], products[:, 1:].flatten(1)], 1)


def _system(moments: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return JᵀJ and Jᵀr out of `_moments`."""
    rows = moments[:, 3 + size :].reshape(-1, size, size + 1)
    return rows[:, :, 1:], rows[:, :, 0]


def _solve(matrix: Tensor, vector: Tensor, damping: Tensor, held: Tensor) -> Tensor:
    """Return the solutions of symmetric systems of up to three unknowns; those held are 0."""
    free = (~held).double()
    matrix = matrix * free[:, :, None] * free[:, None, :]
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    matrix = matrix + torch.diag_embed(diagonal * damping[:, None] + held)
    adjugate, determinant, root = _cofactors(matrix)
    return (adjugate @ (vector * free * root)[..., None])[..., 0] / determinant[:, None] * root


def _inverse_diagonal(matrix: Tensor) -> Tensor:
    """Return the diagonal of the inverse of symmetric matrices of up to three rows."""
    adjugate, determinant, root = _cofactors(matrix)
    return adjugate.diagonal(dim1=1, dim2=2).clamp(min=0) / determinant[:, None] * root.square()


def _cofactors(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return adjugate and determinant of symmetric matrices brought to unit diagonal, and the roots that do it.

    With a unit diagonal the closed form loses nothing to the scales of the parameters.
    """
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    root = (diagonal + 1e-12 * diagonal.amax(1, keepdim=True) + _TINY).rsqrt()
    one = torch.ones_like(root[:, 0])
    if matrix.shape[1] == 1:
        return one[:, None, None], one, root
    scaled = matrix * root[:, :, None] * root[:, None, :]
    a = scaled[:, 0, 1]
    if matrix.shape[1] == 2:
        rows = [one, -a, -a, one]
        determinant = 1 - a * a
    else:
        b, c = scaled[:, 0, 2], scaled[:, 1, 2]
        ab, ac, bc = b * c - a, a * c - b, a * b - c
        rows = [1 - c * c, ab, ac, ab, 1 - b * b, bc, ac, bc, 1 - a * a]
        determinant = 1 + 2 * a * b * c - a * a - b * b - c * c
    return torch.stack(rows, 1).view(-1, *matrix.shape[1:]), determinant.clamp(min=1e-12), root
