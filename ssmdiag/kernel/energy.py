"""Energy of a memory kernel in closed form, at any lag, and the horizon it gives.

    E(τ) = Σ_{t≥τ} K_t² = ‖F x_τ‖²,     H_q = min{τ : E(τ) ≤ (1 − q) E(0)}

x_τ is the state τ steps after an impulse, (w_n λ̄_n^τ) or Ā^τ B̄, and F the factor of `orthonormal`, or one
of the Gramian Σ (CĀ^t)ᵀ(CĀ^t). Nothing is summed over lags: lag 10 and lag 10⁹ cost the same.
Energies sum over copies, and over outputs and inputs where there are many (the Frobenius norm of K_t), by the forms
of `quadratic_form`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.cores import one_thread
from ssmdiag.kernel import finite
from ssmdiag.kernel.dense import energy_between, realise
from ssmdiag.kernel.matrix_energy import MatrixEnergy
from ssmdiag.kernel.powers import MAX_LAG, lags_of, powers, powers_minus_one
from ssmdiag.kernel.response import EPSILON, Response, for_responses, modal_terms, square_of
from ssmdiag.kernel.status import Status, channel_status
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

SHORT = 2
"""Largest width of a short bin, in lags."""
SUMMED_LAGS = 16
"""Bins of up to this many lags are summed lag by lag where the difference of tails is not ..."""
PRECISE = 1e-10
"""... accurate to this share of it."""
UNSURE = 0.1
"""Largest share of an energy that may be rounding error; beyond it the energy is unknown."""


@dataclass(frozen=True, eq=False)
class Energy:
    """Energies of every channel, with bounds on their rounding errors."""

    values: Tensor
    """(channel, lag) or (channel, bin) float64; inf where it is infinite, NaN where the status says why."""
    noise: Tensor
    """Bound on the rounding error of each value, given ℓ, B̄ and C; an energy not above it is unknown."""
    status: Tensor
    """`Status` of each channel, (channel,) uint8."""

    @property
    def known(self) -> Tensor:
        """Whether each value is a number with at least one certain digit, (channel, lag)."""
        return (self.values.isfinite() & (self.noise <= UNSURE * self.values)) | (self.values == self.noise)


@dataclass(frozen=True, eq=False)
class Horizon:
    """Lags after which a share of each kernel's energy has passed."""

    lags: Tensor
    """(channel,) float64 whole numbers; inf for a mode on the boundary, NaN where the status says why."""
    status: Tensor
    """`Status` of each channel, (channel,) uint8."""
    share: float


@one_thread()
def tail_energy(recurrence: Recurrence, lags: Tensor | Sequence[int]) -> Energy:
    """Return E(τ), (channel, lag), at whole lags up to 2⁴⁰. Raises ValueError where B or C is absent."""
    at, recurrence = lags_of(lags, recurrence.log_eigenvalues.device), realise(recurrence)
    status = channel_status(recurrence)
    values, noise = _empty(status, len(at)), _empty(status, len(at))

    def measure(chunk: slice, response: Response) -> None:
        values[chunk], noise[chunk] = _energy(response, response.states(at))

    if recurrence.taps is not None:
        values, noise = finite.tail_energy(recurrence.taps, at)
    elif recurrence.layout != "many inputs":
        for_responses(recurrence, status, len(at), measure)
    elif status[0] == Status.KNOWN:
        values[0], noise[0] = MatrixEnergy(recurrence).tail(at)
    return _finish(values, noise, status, growing=torch.inf, marginal=torch.inf)


@one_thread()
def band_energy(recurrence: Recurrence, edges: Tensor | Sequence[int]) -> Energy:
    """Return the mean of K_t² over each bin edges[k] ≤ t < edges[k + 1], (channel, bin).

    A difference of tail energies E(a) − E(b) = ⟨F(x_a − x_b), F(x_a + x_b)⟩, with x_a − x_b formed without
    cancellation. Modes on the boundary, whose tails are infinite, are summed as finite geometric series.
    Raises ValueError where edges do not increase, or B or C is absent.
    """
    recurrence = realise(recurrence)
    status = channel_status(recurrence)
    bands = _Bands(recurrence, edges, status)
    _ask(recurrence, status, bands)
    return bands.energy()


@one_thread()
def horizon(recurrence: Recurrence, share: float = 0.99, max_lag: int = 10**9) -> Horizon:
    """Return H_q, (channel,), exact to the step, at a cost that does not depend on it.

    Raises ValueError where B or C is absent, or `share` is not between 0 and 1.
    """
    recurrence = realise(recurrence)
    status = channel_status(recurrence)
    search = _Search(share, max_lag, status)
    _ask(recurrence, status, search)
    return search.horizon()


@one_thread()
def band_energy_and_horizon(
    recurrence: Recurrence, edges: Tensor | Sequence[int], share: float = 0.99, max_lag: int = 10**9
) -> tuple[Energy, Horizon]:
    """Return the band energy and the horizon of the same channels, from one factor of their modes."""
    recurrence = realise(recurrence)
    status = channel_status(recurrence)
    bands, search = _Bands(recurrence, edges, status), _Search(share, max_lag, status)
    _ask(recurrence, status, bands, search)
    return bands.energy(), search.horizon()


def _ask(recurrence: Recurrence, status: Tensor, *questions: _Bands | _Search) -> None:
    """Compute each quantity from the response of every channel that has one, or from its taps."""
    if recurrence.taps is not None:
        for question in questions:
            question.measure_taps(recurrence.taps)
        return

    def measure(chunk: slice, response: Response) -> None:
        for question in questions:
            question.measure(chunk, response)

    if recurrence.layout != "many inputs":
        for_responses(recurrence, status, max(question.lags for question in questions), measure)
        return
    matrix = MatrixEnergy(recurrence)
    for question in questions:
        question.measure_matrix(matrix)


class _Bands:
    """The answer of `band_energy`, chunk by chunk."""

    def __init__(self, recurrence: Recurrence, edges: Tensor | Sequence[int], status: Tensor) -> None:
        self.edges = at = lags_of(edges, recurrence.log_eigenvalues.device)
        if len(at) < 2 or not bool((at.diff() > 0).all()):
            raise ValueError("edges must be at least two lags that increase")
        self.recurrence, self.status = recurrence, status
        self.first, self.width = at[:-1], at.diff()
        self.lags = len(self.width)
        self.values, self.noise = _empty(status, self.lags), _empty(status, self.lags)
        # Short bins at the first lags are summed lag by lag, which is faster than a difference of tails.
        long = self.width > SHORT
        self.near = int(long.to(torch.uint8).argmax()) if bool(long.any()) else self.lags

    def measure(self, chunk: slice, response: Response) -> None:
        part, unsure, near, width = self.values[chunk], self.noise[chunk], self.near, self.width
        if near < len(width):
            part[:, near:], unsure[:, near:] = _difference(response, self.edges[near:])
        again = (width <= SUMMED_LAGS) & (unsure > PRECISE * part).any(0)
        again[:near] = True
        if bool(again.any()):
            part[:, again], unsure[:, again] = _sum(response, self.first[again], width[again])

    def measure_matrix(self, matrix: MatrixEnergy) -> None:
        if self.status[0] in (Status.KNOWN, Status.BOUNDARY):
            self.values[0], self.noise[0] = matrix.bands(self.edges)

    def measure_taps(self, taps: Tensor) -> None:
        values, noise = finite.band_energy(taps, self.edges)
        usable = (self.status == Status.KNOWN)[:, None]
        self.values[:], self.noise[:] = values.where(usable, 0.0), noise.where(usable, 0.0)

    def energy(self) -> Energy:
        if self.recurrence.layout != "many inputs":
            for one in (self.status == Status.BOUNDARY).nonzero()[:, 0].tolist():
                self.values[one], self.noise[one] = _geometric(self.recurrence, one, self.first, self.width)
        values, noise = self.values / self.width, self.noise / self.width
        return _finish(values, noise, self.status, growing=torch.inf, marginal=None)


class _Search:
    """The answer of `horizon`, chunk by chunk."""

    lags = 1

    def __init__(self, share: float, max_lag: int, status: Tensor) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        if not 1 <= max_lag <= MAX_LAG:
            raise ValueError(f"max_lag must lie between 1 and {MAX_LAG:,}, got {max_lag:,}")
        self.share, self.max_lag, self.status = share, max_lag, status.clone()
        self.found = torch.full(status.shape, torch.nan, dtype=torch.float64, device=status.device)

    def measure(self, chunk: slice, response: Response) -> None:
        total, unsure = _energy(response, response.start())
        unknown = unsure > UNSURE * total
        target = (1 - self.share) * total
        last, state = response.last_above(target, self.max_lag)
        _, unsure = _energy(response, state)
        self._settle(chunk, last[:, 0] + 1, (unknown | (unsure > UNSURE * target))[:, 0])

    def measure_matrix(self, matrix: MatrixEnergy) -> None:
        if self.status[0] == Status.KNOWN:
            last, relative = matrix.horizon(self.share, self.max_lag)
            self._settle(slice(1), self.found.new_tensor([last + 1]), self.found.new_tensor([relative]) > UNSURE)

    def measure_taps(self, taps: Tensor) -> None:
        self._settle(slice(None), finite.lag_left(taps, 1 - self.share), self.status == -1)

    def _settle(self, chunk: slice, lags: Tensor, unknown: Tensor) -> None:
        status = self.status[chunk]
        usable = status == Status.KNOWN
        status = torch.where(usable & (lags > self.max_lag), int(Status.BEYOND), status)
        self.status[chunk] = torch.where(usable & unknown, int(Status.CANCELLED), status).to(status.dtype)
        self.found[chunk] = lags

    def horizon(self) -> Horizon:
        lags = self.found.where(self.status == Status.KNOWN, torch.nan)
        return Horizon(lags.where(self.status != Status.BOUNDARY, torch.inf), self.status, self.share)


def _energy(response: Response, states: Tensor) -> tuple[Tensor, Tensor]:
    """Return ‖F x‖² and its noise, (channel, lag)."""
    values, floor = response.energy(states), response.floor(states)
    return values, 2 * values.sqrt() * floor + floor.square()


def _difference(response: Response, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ K_t² over bins as a difference of tails, E(a) − E(b) = −2 Re⟨Fx_a, F(x_b − x_a)⟩ − ‖F(x_b − x_a)‖²."""
    coordinates, floor = response.measure(response.change(edges))
    state, change = coordinates.tensor_split(2, -1)
    floor, change_floor = floor.tensor_split(2, -1)
    product = (state * change).sum(1)
    norm, change_norm = square_of(coordinates).sum(1).tensor_split(2, -1)
    # No energy grows: the norm of both states' sum is at most twice the first's.
    noise = 2 * (change_floor * norm.sqrt() + floor * (change_norm.sqrt() + change_floor))
    return -2 * product - change_norm, noise


def _sum(response: Response, first: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ K_t² over short bins, lag by lag, and its noise."""
    bins = torch.arange(len(first), device=first.device).repeat_interleave(width.long())
    offset = torch.arange(len(bins), device=first.device) - (width.cumsum(0) - width).long()[bins]
    K, floor = response.outputs(first[bins] + offset)
    square, noise = K.square().sum(1), (2 * K.abs() * floor + floor.square()).sum(1)
    into = square.new_zeros(len(square), len(first))
    return into.index_add(1, bins, square), into.index_add(1, bins, noise)


def _geometric(recurrence: Recurrence, channel: int, first: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ K_t² over bins, and its noise, of one channel with modes on the boundary.

    Σ_ij x_i x_j* Σ_{t<n} (λ̄_i λ̄_j*)^t over pairs of modes: finite sums, which cancel more than tails do.
    """
    if recurrence.dense is not None:
        return _finite_sums(recurrence.dense(), channel, first, width)
    ell, weights = modal_terms(recurrence, slice(channel, channel + 1))
    ell, weights = ell[0].to(torch.complex128), weights[0].to(torch.complex128)
    # Each term with its conjugate: the sum is real.
    ell, weights = torch.cat([ell, ell.conj()]), torch.cat([weights, weights.conj()], 1) / 2
    pair = ell[:, None] + ell.conj()
    one = powers_minus_one(pair, first.new_ones(()))
    weight = weights.T @ weights.conj()
    states = powers(ell[:, None], first)
    values, noise = [], []
    for bin, count in enumerate(width):
        series = powers_minus_one(pair, count) / one.where(one.abs() > 0, 1.0)
        series = series.where(one.abs() > 0, count.to(torch.complex128))
        terms = weight * series * states[:, bin : bin + 1] * states[:, bin].conj()
        values.append(terms.real.sum())
        noise.append(terms.abs().sum() * (4 * torch.finfo(torch.float64).eps))
    return torch.stack(values), torch.stack(noise)


def _finite_sums(dense: DenseRealisation, channel: int, first: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same for a full state matrix, without its eigenvectors."""
    A, B, C = dense.state_matrix, dense.input_matrix, dense.output_matrix
    own = DenseRealisation(A[channel, None], B[channel, None], C[:, channel, None])
    values, bound = energy_between(own, first, width)
    return values[0], bound[0] * (EPSILON * (8 + A.shape[1] + 2 * (first + width)))


def _empty(status: Tensor, count: int) -> Tensor:
    return torch.zeros(len(status), count, dtype=torch.float64, device=status.device)


def _finish(values: Tensor, noise: Tensor, status: Tensor, *, growing: float, marginal: float | None) -> Energy:
    """Replace computed values where a channel's status determines the answer."""
    for which, value in ((Status.NOT_FINITE, torch.nan), (Status.GROWS, growing), (Status.BOUNDARY, marginal)):
        rows = (status == which).nonzero()[:, 0]
        if value is not None and rows.numel():
            values[rows], noise[rows] = value, 0.0
    cancelled = (status == Status.KNOWN) & (noise > UNSURE * values).all(1) & (noise > 0).any(1)
    return Energy(values, noise, torch.where(cancelled, int(Status.CANCELLED), status).to(torch.uint8))
