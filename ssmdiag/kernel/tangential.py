"""Energy of a kernel matrix whose modes cancel, with the accuracy of a factor.

    Σ_{t≥τ} ‖C Λ^t B̄‖² = ‖F Λ^τ B̄‖²,     FᴴF = Σ_t (C Λ^t)ᴴ (C Λ^t),     (FᴴF)_ij = C_iᴴ C_j / (1 − λ̄_i* λ̄_j)

F is computed as in `orthonormal`, with a direction for each section of the cascade (tangential interpolation; Takenaka
and Malmquist with matrices). Slowest first, u = C_k / |C_k|, and every later column's part along u passes through the
all-pass of mode k,

    F_kj = √(1 − |λ̄_k|²) / (1 − λ̄_k* λ̄_j) · uᴴ C_j,     C_j ← C_j + u (b_kj − 1) uᴴ C_j,     |b_kj| < 1

No column grows, so rounding adds at most ε Σ_n |C_n| |B̄_n| |z_n| / √(1 − |λ̄_n|²) to the square root of the energy.
Operations: N² outputs once, N² inputs per lag.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.cores import triangular
from ssmdiag.kernel.powers import powers_minus_one
from ssmdiag.kernel.quadratic_form import QuadraticForm, StoredModes, conjugate_of
from ssmdiag.kernel.response import EPSILON, WORKING_SET, reach_of

SECTIONS = 32
"""Sections applied at a time: matrix products instead of updates of rank one."""
TINY = 1e-300


def tangential_factor(ell: Tensor, columns: Tensor) -> Tensor:
    """Return F, (row, mode) upper triangular, for ℓ (mode,) slowest first, Re ℓ < 0, and C (output, mode)."""
    modes = len(ell)
    rest = columns.mT.contiguous()  # later modes then form one block
    factor = rest.new_zeros(modes, modes)
    for start in range(0, modes, SECTIONS):
        stop = min(start + SECTIONS, modes)
        here, later = ell[start:stop, None], ell[start:]
        distance = -_expm1(later + here.conj())
        apart = later - here
        # Modes before a section's own have already passed; their values need only be finite.
        apart = torch.complex(apart.real.clamp(max=0.0), apart.imag)
        change = _expm1(apart).mul_(here.exp()).div_(distance) - 1  # b − 1
        rows = (-(2 * here.real).expm1()).sqrt() / distance
        own, count = rest[start:stop], stop - start
        directions, along = torch.empty_like(own), torch.zeros_like(rows)
        for k in range(count):
            torch.div(own[k], torch.linalg.vector_norm(own[k]).clamp(min=TINY), out=directions[k])
            torch.mv(own[k:], directions[k].conj(), out=along[k, k:count])
            own[k + 1 :].addr_(change[k, k + 1 : count] * along[k, k + 1 : count], directions[k])
        if stop < modes:
            columns, change = rest[stop:], change[:, count:]
            passed = directions.conj() @ columns.mT
            overlap = directions.conj() @ directions.mT
            for k in range(count):
                if k:
                    passed[k] += overlap[k, :k] @ along[:k, count:]
                along[k, count:] = change[k] * passed[k]
            columns.addmm_(along[:, count:].mT, directions)
            along[:, count:] = passed
        factor[start:stop, start:] = rows.mul_(along)
    return factor


class TangentialFactor(StoredModes):
    """Energies from the factor, in the units of the form that it is made from; for tails all modes must be stable."""

    def __init__(self, form: QuadraticForm) -> None:
        self.ell, self.positive, self.sizes, self.roots = form.ell, False, form.sizes, form.roots
        # K and its transpose have the same energy: the factor is made of the larger side, a lag uses the smaller.
        outputs, inputs = narrowed(form.output_directions), narrowed(form.input_directions)
        if len(outputs) < len(inputs):
            outputs, inputs = inputs, outputs
        self.larger, self.smaller = outputs, inputs.mT
        modes = self.ell.shape[1]
        self.readers = torch.cat([outputs.real, -outputs.imag], 1)
        self.epsilon = EPSILON * (16 + 2 * modes) * torch.ones_like(self.ell.real[:, :1])

    @cached_property
    def triangle(self) -> Tensor:
        """F over (Re, Im) of the stored modes, (2 mode, 2 mode) float64."""
        both = torch.stack([self.ell[0], conjugate_of(self.ell[0])], 1).flatten()
        F = tangential_factor(both, torch.stack([self.larger, self.larger.conj()], 2).flatten(1))
        own, other = F[:, 0::2], F[:, 1::2]
        rows = torch.cat([own + other, 1j * (own - other)], 1) / 2
        return triangular(torch.cat([rows.real, rows.imag]))

    def energy(self, states: Tensor) -> Tensor:
        return self._norms(self.triangle, states)

    def tail(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy from each state on and a bound on its rounding error, (1, lag)."""
        return with_noise(self.energy(states), reach_of(self.roots, states) * self.epsilon)

    def squares(self, lags: Tensor) -> tuple[Tensor, Tensor]:
        """Return ‖K_t‖² at single lags from K_t itself, and its noise, (1, lag)."""
        states = self.states(lags)
        return with_noise(self._norms(self.readers, states), reach_of(self.sizes, states) * self.epsilon)

    def difference(self, first: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ ‖K_t‖² over bins as E(a) − E(b) = −2⟨Fx_a, F(x_b − x_a)⟩ − ‖F(x_b − x_a)‖², and its noise."""
        states = self.states(first)
        change = states * powers_minus_one(self.ell[..., None], width)
        product, norm, change_norm = [], [], []
        for state, moved in zip(self._split(states), self._split(change), strict=True):
            coordinates, other = self._times(self.triangle, state), self._times(self.triangle, moved)
            product.append((coordinates * other).sum((0, 2)))
            norm.append(coordinates.square().sum((0, 2)))
            change_norm.append(other.square().sum((0, 2)))
        products, norms, changes = (torch.cat(part)[None] for part in (product, norm, change_norm))
        floor, change_floor = (reach_of(self.roots, part) * self.epsilon for part in (states, change))
        # No energy grows: the norm of both states' sum is at most twice the first's.
        noise = 2 * (change_floor * norms.sqrt() + floor * (changes.sqrt() + change_floor))
        return -2 * products - changes, noise

    def _norms(self, matrix: Tensor, states: Tensor) -> Tensor:
        return torch.cat([self._times(matrix, some).square().sum((0, 2)) for some in self._split(states)])[None]

    def _times(self, matrix: Tensor, states: Tensor) -> Tensor:
        """Return the matrix times (Re, Im) of diag(z) B̄, (row, lag, input)."""
        columns = (self.sizes[0, :, None] * states[0])[..., None] * self.smaller[:, None]
        product = matrix @ torch.cat([columns.real, columns.imag]).flatten(1)
        return product.unflatten(1, columns.shape[1:])

    def _split(self, states: Tensor) -> tuple[Tensor, ...]:
        return states.split(max(1, 16 * WORKING_SET // (16 * self.smaller.numel())), 2)


def narrowed(columns: Tensor) -> Tensor:
    """Return at most 2 · modes rows with the same products XᴴX and XᵀX between columns, (row, mode)."""
    rows, modes = columns.shape
    if rows <= 2 * modes:
        return columns
    triangle = triangular(torch.cat([columns.real, columns.imag], 1))
    return torch.complex(triangle[:, :modes].contiguous(), triangle[:, modes:].contiguous())


def with_noise(values: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Return values, and a bound on the rounding error of each from that of its square root."""
    return values, 2 * values.sqrt() * floor + floor.square()


def _expm1(z: Tensor) -> Tensor:
    """Return e^z − 1 without cancellation."""
    half = (z.imag / 2).sin()
    return torch.complex(z.real.expm1() * z.imag.cos() - 2 * half.square(), z.real.exp() * z.imag.sin())
