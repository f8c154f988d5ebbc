"""The energy of channels in closed form, as a quadratic form over pairs of modes.

    Σ_{t≥τ} K_t² = ½ (zᴴ M z + Re zᵀ S z),     z = λ̄^τ
    M_ij = Σ w_i* w_j / (1 − λ̄_i* λ̄_j),     S_ij = Σ w_i w_j / (1 − λ̄_i λ̄_j)

Sums are over copies, or over outputs and inputs. Row i of z∘(Hz) is mode i's part of the total energy, its products
with all other modes included. The pairs inside a group alone give the group's own energy. Leaving out the pairs whose
beat completes a turn within a window gives a smooth energy, without oscillation.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from copy import copy
from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.kernel.powers import UNDERFLOW, powers
from ssmdiag.kernel.quadratic_form import QuadraticForm, real_form
from ssmdiag.kernel.response import EPSILON, LEAST, modal_terms
from ssmdiag.recurrence.modal import Recurrence

ALIKE = 0.1
"""Rates in a group exceed its slowest rate by at most this share of it."""
SLOWEST = 1e-8
"""Least decay of a mode over the context, in nats: with it, sums over all lags are finite on the boundary too."""


class PairForms:
    """The forms of some channels at some lags, in units in which the largest weight is 1."""

    def __init__(self, ell: Tensor, hermitian: Tensor, symmetric: Tensor | None, unit: Tensor, lags: Tensor) -> None:
        self.rate, self.unit, self.lags = -ell.real, unit, lags
        slowed = ell.real.clamp(max=-SLOWEST / float(lags[-1]))
        if symmetric is None:
            self.ell, self.symmetric = slowed, None
            self.hermitian = hermitian / -(slowed[:, :, None] + slowed[:, None]).expm1()
        else:
            self.ell = ell = torch.complex(slowed, ell.imag)
            self.hermitian = hermitian / _one_minus(ell.conj()[:, :, None] + ell[:, None])
            self.symmetric = symmetric / _one_minus(ell[:, :, None] + ell[:, None])

    @classmethod
    def of_channels(cls, source: Recurrence, chunk: slice, usable: Tensor, lags: Tensor) -> PairForms:
        ell, weights = modal_terms(source, chunk, usable)
        unit = weights.abs().amax((1, 2)).clamp(min=torch.finfo(torch.float64).tiny)
        weights = weights / unit[:, None, None]
        if not ell.is_complex():
            return cls(ell, weights.mT @ weights, None, unit, lags)
        return cls(ell, weights.mH @ weights, weights.mT @ weights, unit, lags)

    @classmethod
    def of_matrices(cls, source: Recurrence, lags: Tensor) -> PairForms:
        form = QuadraticForm(source)
        sizes = form.sizes.mT * form.sizes
        return cls(form.ell, (form.hermitian * sizes)[None], (form.symmetric * sizes)[None], form.unit[None], lags)

    @classmethod
    def of_nothing(cls, source: Recurrence, lags: Tensor) -> PairForms:
        """Return the forms of a layer of many inputs whose kernel is zero or not known: without energy."""
        ell = torch.full_like(source.rate, -UNDERFLOW)
        return cls(ell, ell.new_zeros(1, source.modes, source.modes), None, ell.new_ones(1), lags)

    @cached_property
    def number(self) -> Tensor:
        """Number of each mode's group, (channel, mode)."""
        return _numbers(self.rate)

    def select(self, rows: Tensor) -> PairForms:
        """Return the forms of some of the channels."""
        some = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and name != "lags":
                setattr(some, name, value[rows])
        return some

    def shares(self, chosen: Tensor, lags: Tensor) -> Tensor:
        """Return the energy from each lag on, the energy of all modes but the chosen ones, and the noise of either,
        (3, channel, lag); `chosen` (channel, mode) bool, `lags` (channel, lag).
        """
        states = self.states_at(lags)
        kept = ~chosen if self.symmetric is None else (~chosen).repeat(1, 2)
        others = states * kept[..., None]
        whole, rest = ((some * (self.form @ some)).sum(1) for some in (states, others))
        return torch.stack([whole, rest, self._noise(states)])

    def bands(self, low: Tensor, lags: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Return the energy from each lag on, (channel, lag), and that of all modes outside each band, (channel, band,
        lag); a band begins at the rate `low` (channel, band).
        """
        outside = (~inside_band(self.rate[:, None], low[..., None], width)).mT
        outside = outside if self.symmetric is None else outside.repeat(1, 2, 1)
        states = self.states_at(lags)
        others = (states[:, :, None] * outside[..., None]).flatten(2)
        whole, rest = ((some * (self.form @ some)).sum(1) for some in (states, others))
        return whole, rest.unflatten(1, low.shape[1:] + lags.shape[1:])

    @cached_property
    def states(self) -> Tensor:
        """λ̄^τ at the form's own lags."""
        return self.states_at(self.lags[None])

    def states_at(self, lags: Tensor) -> Tensor:
        """Return λ̄^τ, (channel, row, lag), at lags (channel, lag): all real parts, then the imaginary ones, if any."""
        if self.symmetric is None:
            return (self.ell[..., None] * lags[:, None]).clamp(min=LEAST).exp()
        states = powers(self.ell[..., None], lags[:, None])
        states = states.where(states.abs() > math.exp(LEAST), 0.0)
        return torch.cat([states.real, states.imag], 1)

    def left(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy from each lag to infinity and its noise, both (channel, lag)."""
        states = self.states_at(lags)
        return (states * (self.form @ states)).sum(1), self._noise(states)

    @cached_property
    def form(self) -> Tensor:
        """H, (channel, row, row)."""
        return self.hermitian if self.symmetric is None else real_form(self.hermitian, self.symmetric)

    @cached_property
    def alone(self) -> Tensor:
        """Each mode's energy alone, averaged over its phase, (channel, mode, lag)."""
        size = self.hermitian.diagonal(dim1=1, dim2=2).real[..., None]
        if self.symmetric is None:
            return size * self.states.square()
        real, imaginary = self.states.tensor_split(2, 1)
        return size / 2 * (real.square() + imaginary.square())

    @cached_property
    def parts(self) -> Tensor:
        """z∘(Hz) of each mode, (channel, mode, lag): its part of the total energy."""
        parts = self.states * (self.form @ self.states)
        return parts if self.symmetric is None else torch.add(*parts.tensor_split(2, 1))

    @cached_property
    def whole(self) -> Tensor:
        """The energy from each lag to infinity, (channel, lag)."""
        return self.parts.sum(1)

    def _noise(self, states: Tensor) -> Tensor:
        """Return a bound on the rounding error of a sum over pairs, (channel, lag): that of the sum of moduli."""
        sizes = self.hermitian.diagonal(dim1=1, dim2=2).real.sqrt()
        moduli = states if self.symmetric is None else torch.hypot(*states.tensor_split(2, 1))
        reach = (sizes[:, None] @ moduli)[:, 0]
        return reach.square() * (2 * EPSILON * (16 + 2 * self.rate.shape[1]))

    def by_group(self, number: Tensor, groups: int, at: Tensor) -> Tensor:
        """Return, for each group of modes, (4, channel, group, lag): its part of the total energy, its own energy, the
        sum of its modes' separate energies, and that sum weighted by their rates.

        `number` (channel, mode) is each mode's group, `at` (channel, lag) are positions among the lags.
        """
        same = number[:, :, None] == number[:, None]
        modes = self.rate.shape[1]
        states = self.states.gather(2, at[:, None].expand(-1, self.states.shape[1], -1))
        alone = self.alone.gather(2, at[:, None].expand(-1, modes, -1))
        parts = states * (self.form @ states)
        if self.symmetric is None:
            own = states * ((self.hermitian * same) @ states)
        else:
            real, imaginary = parts.tensor_split(2, 1)
            parts, z = real + imaginary, torch.complex(*states.tensor_split(2, 1))
            own = (z.conj() * ((self.hermitian * same) @ z) + z * ((self.symmetric * same) @ z)).real / 2
        every = torch.stack([parts, own, alone, alone * self.rate[..., None]])
        into = every.new_zeros(4, len(number), groups, at.shape[1])
        return into.scatter_add_(2, number[None, ..., None].expand_as(every), every)

    def of_modes(self, chosen: Tensor, window: Tensor) -> Tensor:
        """Return, for each channel, (7, channel, lag): the energy of all modes, of all but the chosen ones, of the
        chosen ones, of the chosen ones without beats that complete within the window, the sum of their separate
        energies, that sum weighted by their rates, and the noise.

        `chosen` (channel, mode) bool; `window` (channel,) lags.
        """
        parts = self.parts
        count = int(chosen.sum(1).amax().clamp(min=1))
        place = torch.arange(count, device=chosen.device)
        which = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count, None]
        there = (place < chosen.sum(1, keepdim=True))[..., None]

        def some(values: Tensor) -> Tensor:
            """Return the rows of the chosen modes."""
            return values.gather(1, which.expand(-1, -1, values.shape[2])).where(there, 0.0)

        def pairs(values: Tensor) -> Tensor:
            return some(some(values).mT).mT

        if self.symmetric is None:
            states = some(self.states)
            own = smooth = (states * (pairs(self.hermitian) @ states)).sum(1)
        else:
            M, S = pairs(self.hermitian), pairs(self.symmetric)
            states = torch.cat([some(part) for part in self.states.tensor_split(2, 1)], 1)
            own = (states * (real_form(M, S) @ states)).sum(1)
            turn = some(self.ell.imag[..., None])
            apart, together = (turn - turn.mT).abs(), turn + turn.mT
            reach = 2 * math.pi / window.clamp(min=1.0)[:, None, None]
            slow, slow_sum = apart < reach, torch.minimum(together, 2 * math.pi - together) < reach
            smooth = (states * (real_form(M * slow, S * slow_sum) @ states)).sum(1)
        alone = some(self.alone)
        weighted = (alone * some(self.rate[..., None])).sum(1)
        rest = self.whole - 2 * some(parts).sum(1) + own
        return torch.stack([self.whole, rest, own, smooth, alone.sum(1), weighted, self._noise(self.states)])


def inside_band(rate: Tensor, low: Tensor, width: float) -> Tensor:
    """Return whether rates are in a band."""
    return (rate >= low) & (rate <= width * low)


def _numbers(rate: Tensor) -> Tensor:
    """Return the number of each mode's group, (channel, mode), for ascending rates."""
    if len(rate) == 1:
        bounds = rate.new_tensor(first_rates(rate[0].tolist()))
        return torch.searchsorted(bounds, rate.contiguous(), right=True) - 1
    number, first = torch.zeros_like(rate, dtype=torch.long), rate[:, 0]
    for mode in range(1, rate.shape[1]):
        new = rate[:, mode] > first * (1 + ALIKE)
        first = torch.where(new, rate[:, mode], first)
        number[:, mode] = number[:, mode - 1] + new
    return number


def first_rates(rates: list[float]) -> list[float]:
    """Return the slowest rate of each group of ascending rates."""
    found, position = [], 0
    while position < len(rates):
        found.append(rates[position])
        # A growing mode has a negative rate, which multiplying lowers: such a mode is a group of its own.
        position = max(position + 1, bisect_right(rates, rates[position] * (1 + ALIKE), lo=position))
    return found or [0.0]


def _one_minus(exponent: Tensor) -> Tensor:
    """Return 1 − e^x without cancellation, for Re x ≤ 0."""
    half = (exponent.imag / 2).sin()
    size = exponent.real.exp()
    return torch.complex(2 * size * half.square() - exponent.real.expm1(), -size * exponent.imag.sin())
