"""A layer's remaining energy as a sum of a few exponentials, within a stated number of dB.

    E(τ) / E(a) ≈ Σ p_k e^{−2 r_k (τ − a)},     p_k ≥ 0, at every lag from a to the window's end

It describes and does not explain: a layer of many channels has many rates, and three approximate all of them.
Rates and shares are least squares of the relative error, from the best of a grid of rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MOST_TERMS = 3
WITHIN_DB = 1.5
"""Largest distance in dB, at any lag, of a description."""
GOOD_DB = 0.5
"""Within this distance no further exponential is tried."""
FORGOTTEN = 1e-6
"""Share of the energy at which the window ends."""
LEAST_DROP_DB = 1.0
"""Least fall over a window: over a smaller one, anything is a description."""
RATES = 14
"""Rates of the first grid."""
ROUNDS = 8
"""Gauss–Newton steps from the best of the grid; each is tried whole and in parts."""
GONE = math.log(10)
"""Largest rate, nats per step: a hundredth of the term's energy is left at the next lag; how much less is not known."""
NUDGE, PARTS = 1e-4, (1.0, 0.4, 0.15, 0.04)
BETWEEN_DB = 0.2
"""Least allowance for a larger distance between two sampled lags."""
FEWEST_CHANNELS = 8
"""With fewer, kernels oscillate between the sampled lags, unless their modes are real."""
STARTS = (1.0, 0.5, 0.1)
"""Shares of the energy left at the lags from which a description is sought."""
FEWEST_LAGS = 6
FIRST_LAGS, PER_OCTAVE, SQUARES = 32, 12, 48
"""First lags, all of which are sampled, and how many of the later ones."""
STEEPEST_DB = 3.0
"""Fall between neighbouring sampled lags beyond which they are too far apart."""


@dataclass(frozen=True)
class EnergyCurve:
    """The energy that remains from each lag on, as a sum of a few exponentials."""

    first: int
    last: int
    """First and last lag over which it was compared with the energy."""
    rates: tuple[float, ...]
    """Of the kernels that have these energies, nats per step, the fastest first; those above `GONE` are given as it."""
    shares: tuple[float, ...]
    """Share of each in the energy left at `first`."""
    energy_share: float
    """Share of the energy of all lags that is left at `first`."""
    within_db: float
    """Largest distance at a lag, rounded up."""


Left = Callable[[Tensor], "tuple[Tensor, Tensor]"]
"""Lags (1, lag) → the energy from each on and its noise, (1, lag)."""


def describe_energy(left: Left, lags: Tensor, start: tuple[Tensor, Tensor]) -> EnergyCurve | None:
    """Return the description of one kernel's energy, or None where three exponentials are not close enough.

    `lags` (lag,) ascending from 0, `start` is `left(lags)`.
    """
    known = (start[0] > FORGOTTEN * start[0][:, :1]) & (start[1] <= 0.01 * start[0])
    count = int(known[0].to(torch.uint8).cumprod(0).sum())
    if count < 3:
        return None
    at = _seen(float(lags[count - 1])).to(lags.device)
    # On the CPU from here: the numbers are few and the steps many.
    t, energy = at.tolist(), left(at[None])[0][0].tolist()
    for part in STARTS:
        first = next((k for k, value in enumerate(energy) if value <= part * energy[0]), len(t))
        if len(t) - first >= FEWEST_LAGS and (found := _describe(t[first:], energy[first:])):
            return replace(found, energy_share=energy[first] / energy[0])
    return None


def _seen(last: float) -> Tensor:
    """Return the lags to sample: all at first, then evenly in their logarithm and in their square root."""
    octaves = FIRST_LAGS * 2 ** (torch.arange(PER_OCTAVE * 40, dtype=torch.float64) / PER_OCTAVE)
    parts = (torch.arange(SQUARES + 1, dtype=torch.float64) / SQUARES).square() * last
    lags = torch.cat([torch.arange(FIRST_LAGS, dtype=torch.float64), octaves, parts]).floor()
    return lags[lags <= last].unique()


def _describe(lags: list[float], energy: list[float]) -> EnergyCurve | None:
    """Return the description over all of these lags."""
    t = torch.tensor(lags, dtype=torch.float64)
    E = torch.tensor(energy, dtype=torch.float64)
    if not bool((E > 0).all()):
        return None
    fall = -10 * E.log10().diff()
    if float(fall.sum()) < LEAST_DROP_DB or bool((fall[t.diff() > 1] > STEEPEST_DB).any()):
        return None
    x, E = t - t[0], E / E[0]
    slopes = -E.log().diff() / (2 * x.diff())
    slopes = slopes[slopes > 0]
    low, high = math.log(float(slopes.amin()) / 2), math.log(2 * float(slopes.amax()))
    grid = torch.linspace(low, high, RATES, dtype=torch.float64)
    found: EnergyCurve | None = None
    # Every second lag decides which rates are best; all lags decide how far off these are.
    some = torch.arange(0, len(x), 2)
    coarse = x[some], E[some]
    for terms in range(1, MOST_TERMS + 1):
        starts = grid[torch.combinations(torch.arange(RATES), terms)]
        logs = _refine(starts[_best(*_fit(starts, *coarse), coarse[1])], *coarse)
        shares, model = (values[0] for values in _fit(logs[None], x, E))
        distance = 10 * (model / E).clamp(min=1e-300).log10()
        # A kernel that oscillates this much between sampled lags may do so between them as well.
        between = max([BETWEEN_DB, *distance.diff().abs()[t.diff() > 1].tolist()])
        off = float(distance.abs().amax()) + between
        possible = math.isfinite(off) and bool((shares > 0).all())
        within = math.ceil(10 * off) / 10 if possible else math.inf
        if within <= WITHIN_DB and (found is None or within < found.within_db):
            order = logs.argsort(descending=True)
            rates, parts = logs.exp()[order].tolist(), shares[order].tolist()
            found = EnergyCurve(int(lags[0]), int(lags[-1]), tuple(rates), tuple(parts), 1.0, within)
            if within <= GOOD_DB:
                break
    return found


def _refine(logs: Tensor, x: Tensor, E: Tensor) -> Tensor:
    """Return the least-squares logarithms of rates (term,), starting from these."""
    terms = len(logs)
    nudges = torch.cat([torch.zeros(1, terms, dtype=x.dtype), NUDGE * torch.eye(terms, dtype=x.dtype)])
    tried = logs[None]
    for turn in range(ROUNDS + 1):
        # Nudged are all that are tried: one fit of many sets costs little more than one of a few.
        fits = _fit((tried[:, None] + nudges).flatten(0, 1), x, E)
        shares, model = (values.unflatten(0, (len(tried), terms + 1)) for values in fits)
        index = _best(shares[:, 0], model[:, 0], E)
        logs = tried[index]
        if turn == ROUNDS or (turn and index == 0):
            break
        off = model[index] / E - 1
        slope = (off[1:] - off[0]) / NUDGE
        gram = slope @ slope.mT
        gram.diagonal().mul_(1 + 1e-6).add_(1e-12)
        step = -torch.linalg.solve(gram, slope @ off[0]).clamp(-1, 1)
        tried = torch.cat([logs[None], logs + step * torch.tensor(PARTS, dtype=x.dtype)[:, None]])
        tried = tried.clamp(max=math.log(GONE))
    return logs


def _best(shares: Tensor, model: Tensor, E: Tensor) -> int:
    """Return the position of the fit with the smallest residual and no negative share."""
    left = (model / E - 1).square().sum(1)
    return int(left.where((shares > 0).all(1) & left.isfinite(), math.inf).argmin())


def _fit(logs: Tensor, x: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least-squares shares, which add up to 1, (set, term), and their energies, (set, lag)."""
    basis = (-2 * logs.exp()[..., None] * x).exp()
    shares, last = logs.new_ones(len(logs), 1), basis[:, -1]
    if logs.shape[1] > 1:
        apart = (basis[:, :-1] - last[:, None]) / E
        gram, wanted = apart @ apart.mT, (apart @ (1 - last / E)[..., None])[..., 0]
        first = wanted / gram[..., 0] if logs.shape[1] == 2 else _solve(gram, wanted)
        shares = torch.cat([first, 1 - first.sum(1, keepdim=True)], 1)
    return shares, (shares[:, None] @ basis)[:, 0]


def _solve(gram: Tensor, wanted: Tensor) -> Tensor:
    """Return the solutions of two equations each, (set, 2); not finite where rates coincide."""
    a, b, c = gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    u, v = wanted.unbind(1)
    return torch.stack([c * u - b * v, a * v - b * u], 1) / (a * c - b * b)[:, None]
