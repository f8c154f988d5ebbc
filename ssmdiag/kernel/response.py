"""The state after an impulse, and the factor that turns it into energy, for modal and dense recurrences.

A response covers some channels of a recurrence. States are (channel, row, lag) float64: one row per mode where all
modes are real and positive, else the real parts of all modes and then their imaginary parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssmdiag.cores import share_out, triangular
from ssmdiag.kernel.dense import krylov, states_at, times
from ssmdiag.kernel.orthonormal import orthonormal_factor
from ssmdiag.kernel.powers import UNDERFLOW, _angle, is_real, powers, powers_minus_one
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

WORKING_SET = 2 * 2**20
"""Bytes of states at a time: the system takes larger blocks back after use and clears their memory each time."""
EPSILON = 2.0**-53
FIRST_ROWS = 4
"""Rows per state with which a dense factor starts."""
LEAST = -350.0
"""Logarithm of the amplitude below which a mode counts as zero."""


def for_responses(recurrence: Recurrence, status: Tensor, lags: int, work: Callable[[slice, Response], None]) -> None:
    """Apply the work to the response of as many channels at a time as fit the cache, on all cores.

    Channels without a finite energy give zero; `lags` is the number of lags that the work uses.
    """
    usable = status == Status.KNOWN
    if recurrence.dense is not None:
        dense = recurrence.dense()
        span = max(1, 16 * WORKING_SET // (8 * dense.input_matrix.shape[1] ** 2 * 40))
    else:
        modes = recurrence.modes * (1 if is_real(recurrence.log_eigenvalues) else 2)
        span = max(1, WORKING_SET // (8 * modes * max(modes, lags)))

    def respond(start: int) -> None:
        chunk = slice(start, start + span)
        if recurrence.dense is not None:
            slowest = recurrence.time_constant[chunk].amax(1)
            work(chunk, DenseResponse(dense, chunk, usable[chunk], slowest))
        else:
            work(chunk, Response(*modal_terms(recurrence, chunk, usable[chunk])))

    share_out(respond, range(0, recurrence.channels, span), status.device)


def modal_terms(recurrence: Recurrence, chunk: slice, usable: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ℓ (channel, mode), slowest first, and weights (channel, copy, mode) of K_t = Re Σ w λ̄^t.

    Either everything is real, or 0 ≤ Im ℓ ≤ π. Modes without weight are given a rate at which they contribute nothing.
    """
    ell = recurrence.log_eigenvalues[chunk]
    B, C = recurrence.matrices
    weights = recurrence.kernel_factor * (C[:, chunk] * B[chunk]).transpose(0, 1)
    idle = (weights == 0).all(1)
    if usable is not None:
        idle = idle | ~usable[:, None]
    weights = weights.where(~idle[:, None], 0.0)
    rate = (-ell.real).clamp(max=UNDERFLOW).where(~idle, UNDERFLOW)
    if is_real(ell):
        ell, weights = -rate, weights.real
    else:
        frequency = _angle(ell.imag, ell.imag.new_ones(())).where(~idle, 0.0)
        # π and −π are one angle, and a mode and its conjugate have one real part.
        weights = torch.where((frequency < 0)[:, None], weights.conj(), weights)
        ell = torch.complex(-rate, frequency.abs().where(ell.imag.abs() != math.pi, math.pi))
    if bool((ell.real.diff(dim=1) <= 0).all()):
        return ell, weights
    order = (-ell.real).argsort(dim=1, stable=True)
    return ell.gather(1, order), weights.gather(2, order[:, None].expand(weights.shape))


class Response:
    """States λ̄^t of a modal recurrence; the modes' weights are part of the factor."""

    def __init__(self, ell: Tensor, weights: Tensor) -> None:
        self.ell, self.positive = ell, not ell.is_complex()
        self.readers = on_parts(weights)
        basis = orthonormal_factor(ell)
        self.factor = on_parts(basis * weights[:, :1])
        for copy in range(1, weights.shape[1]):
            rows = torch.cat([self.factor, on_parts(basis * weights[:, copy, None])], 1)
            # One triangle gives ‖F x‖² summed over all copies; for two copies it costs more than it saves.
            self.factor = triangular(rows) if weights.shape[1] > 2 else rows
        self.roots = square_of(weights).sum(1).sqrt() * (-(2 * ell.real).expm1()).rsqrt()
        self.epsilon = EPSILON * (8 + self.factor.shape[2]) * torch.ones_like(ell.real[:, :1])

    def start(self) -> Tensor:
        """Return the states at lag 0, (channel, row, 1)."""
        return self.states(self.ell.real.new_zeros(1))

    def states(self, lags: Tensor) -> Tensor:
        """Return the states at any lags, (channel, row, lag); lags may differ between channels."""
        if self.positive:
            return _exponential(self.ell[..., None] * lags)
        return _parts(powers(self.ell[..., None], lags))

    def last_above(self, target: Tensor, max_lag: int) -> tuple[Tensor, Tensor]:
        """Return the last lag up to `max_lag` with more energy than `target`, both (channel, 1), and the states there.

        Each round cuts the bracket at three lags: at its quarters at first, then where log E, nearly linear by then,
        passes the target. Eight rounds find a horizon of 10³ or of 10⁹.
        """
        start = self.start()
        # No energy decays slower than the slowest mode: E(τ) ≤ (Σ_n |F_n|)² e^{−2rτ}.
        bound = (self.roots.sum(1, keepdim=True).square() / target).log() / (-2 * self.ell.real[:, :1])
        lags = torch.cat([torch.zeros_like(target), (bound.ceil() + 1).clamp(1, max_lag + 1)], 1)
        level = (self.energy(start) / target).log()
        levels = torch.cat([level, -level], 1)
        quarters = torch.tensor([[0.25, 0.5, 0.75]], dtype=target.dtype, device=target.device)
        for turn in range(200):
            low, high = lags[:, :1], lags[:, 1:]
            width = high - low
            if not bool((width > 1).any()):  # a channel without energy has NaN, and must not hold up the others
                break
            if turn < 3 or turn % 3 == 2:
                ahead = low + width * quarters
            else:
                middle = low + width * levels[:, :1] / (levels[:, :1] - levels[:, 1:])
                reach = (width.square() / (2 * high)).clamp(min=1)
                ahead = torch.cat([middle - reach, middle, middle + reach + 1], 1)
            ahead = torch.minimum(torch.maximum(ahead.floor(), low + 1), high - 1)
            found = (self.energy(self.states(ahead[:, None])) / target).log().clamp(min=-700)
            above = (found > 0).sum(1, keepdim=True)
            pick = torch.cat([above, above + 1], 1)
            lags = torch.cat([low, ahead, high], 1).gather(1, pick)
            levels = torch.cat([levels[:, :1], found, levels[:, 1:]], 1).gather(1, pick)
        return lags[:, :1], self.states(lags[:, None, :1])

    def change(self, edges: Tensor) -> Tensor:
        """Return the states at all edges but the last, and their changes to the next edge, without cancellation."""
        lags, width = edges[:-1], edges.diff()
        if not self.positive:
            states = powers(self.ell[..., None], lags)
            return _parts(torch.cat([states, states * powers_minus_one(self.ell[..., None], width)], -1))
        both = self.ell[..., None] * torch.cat([lags, width])
        states, change = both.tensor_split(2, -1)
        _exponential(states)
        change.expm1_().mul_(states)
        return both

    def outputs(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and its noise, (channel, copy, lag)."""
        states, modes = self.states(lags), self.roots.shape[1]
        sizes = _moduli(self.readers, modes, 2)
        reach = rounded_reach(sizes @ _moduli(states, modes, 1), sizes.sum(-1, keepdim=True))
        return self.readers @ states, reach * self.epsilon[..., None]

    def measure(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return F x, whose squares sum to the energy, and a bound on the rounding error of its norm.

        Where all modes are real and positive, a state's own sum over modes is the bound: one product gives both.
        """
        if self.positive:
            rows = torch.cat([self.factor, self.roots[:, None]], 1) @ states
            reach = rounded_reach(rows[:, -1].abs(), self.roots.sum(1, keepdim=True))
            return rows[:, :-1], reach * self.epsilon
        return self.factor @ states, self.floor(states)

    def energy(self, states: Tensor) -> Tensor:
        """Return E, (channel, lag)."""
        return square_of(self.factor @ states).sum(1)

    def floor(self, states: Tensor) -> Tensor:
        """Return a bound on the rounding error of ‖F x‖: the sum of the single modes' errors."""
        return reach_of(self.roots, _moduli(states, self.roots.shape[1], 1)) * self.epsilon


def _moduli(values: Tensor, modes: int, dim: int) -> Tensor:
    """Return |x| of each mode, from a dimension of modes or of their real and imaginary parts."""
    return values.abs() if values.shape[dim] == modes else torch.hypot(*values.tensor_split(2, dim))


def _parts(values: Tensor) -> Tensor:
    """Return the real parts, then the imaginary parts, of (channel, mode, …) as (channel, row, …)."""
    return torch.cat([values.real, values.imag], 1)


def on_parts(rows: Tensor) -> Tensor:
    """Return R with Re(rows x) = R (Re x, Im x); real rows are returned unchanged."""
    return torch.cat([rows.real, -rows.imag], -1) if rows.is_complex() else rows


class DenseResponse(Response):
    """States Ā^t B̄ in real form, and a factor of their Gramian by doubling, without eigenvectors."""

    def __init__(self, dense: DenseRealisation, chunk: slice, usable: Tensor, time_constant: Tensor) -> None:
        self.positive, keep = False, usable[:, None, None]
        self.A = dense.state_matrix[chunk].where(keep, 0.0)
        self.B = dense.input_matrix[chunk].where(keep[:, 0], 0.0)
        self.readers = dense.output_matrix[:, chunk].movedim(0, 1).where(keep, 0.0)
        # C, CĀ, CĀ², … as one triangle, doubled: eigenvalues of the Gramian would lose half the digits.
        states = self.A.shape[1]
        rows, power = krylov(self.A.mT[:, None], self.readers[..., None], FIRST_ROWS * states)
        self.factor, power = triangular(rows.mT.flatten(1, 2)), power[:, 0].mT
        # The state of a mode 1e-12 from the boundary takes more than 2⁴⁰ steps to vanish.
        for _ in range(64):
            self.factor = triangular(torch.cat([self.factor, times(self.factor, power)], 1))
            power = times(power, power)
            if not bool((power.abs().amax((1, 2)) > 1e-18).any()):
                break
        self.roots = self.factor.square().sum(1).sqrt()
        steps = time_constant.clamp(max=2.0**60).where(usable, 1.0)
        self.epsilon = EPSILON * (8 + self.A.shape[1] + steps[:, None])  # steps include the powers' rounding

    def start(self) -> Tensor:
        return self.B[..., None]

    def states(self, lags: Tensor) -> Tensor:
        return states_at(DenseRealisation(self.A, self.B, self.readers), lags)

    def floor(self, states: Tensor) -> Tensor:
        return (self.roots[:, None] @ states.abs())[:, 0] * self.epsilon

    def last_above(self, target: Tensor, max_lag: int) -> tuple[Tensor, Tensor]:
        squares = [self.A]
        # E never rises: once it is low enough after 2^k steps in every channel, no larger step is tried.
        while len(squares) < max_lag.bit_length() and bool(
            (self.energy(times(squares[-1], self.start())) > target).any()
        ):
            squares.append(times(squares[-1], squares[-1]))
        lags, state = torch.zeros_like(target), self.start()
        for bit in reversed(range(len(squares))):
            further = times(squares[bit], state)
            above = self.energy(further) > target
            state = torch.where(above[:, None], further, state)
            lags += above * 2.0**bit
        return lags, state

    def change(self, edges: Tensor) -> Tensor:
        states = self.states(edges)
        return torch.cat([states[..., :-1], states.diff(dim=-1)], -1)


def reach_of(sizes: Tensor, states: Tensor) -> Tensor:
    """Return Σ_n size_n |x_n|, (channel, lag), with the margin of `rounded_reach`."""
    return rounded_reach((sizes[:, None] @ states.abs())[:, 0], sizes.sum(1, keepdim=True))


def rounded_reach(reach: Tensor, total: Tensor) -> Tensor:
    """Return at least Σ_n s_n |x_n| (1 + r_n τ/8), from the sum without the bracket and from Σ_n s_n.

    rτ is rounded before e^{−rτ} is computed, which gives the power a relative error of rτ ε. As |x| = e^{−rτ} and
    x (1 − log x / 8) is concave, the sum is largest where all modes are equal; a change x_b − x_a may be twice its own
    e^{−rτ}.
    """
    return reach + (torch.special.entr(reach) + torch.special.xlogy(reach, 2 * total)).clamp(min=0) / 8


def _exponential(exponent: Tensor) -> Tensor:
    """Return e^x in place of x."""
    # Exponentials that underflow take twenty times as long, so they are skipped; their squares are zero anyway.
    return torch.threshold_(exponent.clamp_(min=LEAST).exp_(), math.exp(LEAST), 0.0)


def square_of(values: Tensor) -> Tensor:
    """Return |z|²."""
    return values.real.square() + values.imag.square() if values.is_complex() else values * values
