"""Energy of a kernel matrix, many inputs and outputs on one state, as quadratic forms over pairs of modes.

    K_t = κ Re(C diag(z) B̄),     z = λ̄^t,     ‖K_t‖² = ½ (yᴴ M y + Re yᵀ S y),     y_n = κ |C_n| |B̄_n| z_n
    M = (ĈᴴĈ) ∘ (B̂B̂ᴴ)*,     S = (ĈᵀĈ) ∘ (B̂B̂ᵀ)                             over columns Ĉ_n and rows B̂_n of length 1

    Σ_{t≥τ} ‖K_t‖²:           M_ij / (1 − λ̄_i* λ̄_j),  S_ij / (1 − λ̄_i λ̄_j)   in place of M and S
    Σ_{τ≤t<τ+2w} ‖K_t‖²:      M_2w = M_w ∘ (1 + λ̄_i^w* λ̄_j^w),  S_2w = S_w ∘ (1 + λ̄_i^w λ̄_j^w)

No array is larger than 2 modes × 2 modes: N² (outputs + inputs + lags) operations. The rounding error is at most
ε (Σ_n |y_n|)² at one lag, and ε (Σ_n |y_n| / √(1 − |λ̄_n|²))² for tails: where modes cancel, twice as many digits are
lost as by a factor of the Gramian (`tangential`).
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.kernel.powers import UNDERFLOW, _angle, powers
from ssmdiag.kernel.response import EPSILON, LEAST, Response, reach_of, square_of
from ssmdiag.recurrence.modal import Recurrence


def reaching_modes(recurrence: Recurrence) -> tuple[Tensor, Tensor, Tensor]:
    """Return ℓ (mode,), B̄ (mode, input) and κC (output, mode) of modes with nonzero B̄ and C, slowest first."""
    B, C = recurrence.matrices
    ell = recurrence.log_eigenvalues[0]
    reaches = ((B != 0).any(1) & (C != 0).any(0)).nonzero()[:, 0]
    order = reaches[(-ell.real[reaches]).argsort(stable=True)]
    ell = ell[order]
    # π and −π are one angle: a real mode must not seem to differ from its conjugate.
    angle = _angle(ell.imag, ell.imag.new_ones(())).where(ell.imag.abs() != math.pi, math.pi)
    ell = torch.complex(ell.real.clamp(min=-UNDERFLOW), angle)
    return ell, B[order], recurrence.kernel_factor * C[:, order]


def conjugate_of(ell: Tensor) -> Tensor:
    """Return ℓ of the conjugate modes; unchanged where a mode is real and negative."""
    return torch.complex(ell.real, ell.imag.where(ell.imag == math.pi, -ell.imag))


class StoredModes(Response):
    """States λ̄^t of the stored modes alone, as one channel; every mode must be stable or on the boundary."""

    sizes: Tensor
    """κ |C_n| |B̄_n| in units of the layer's own, (1, mode)."""

    def states(self, lags: Tensor) -> Tensor:
        states = powers(self.ell[..., None], lags)
        # Products of subnormal numbers take a hundred times as long, and their squares are zero anyway.
        return states.where(states.abs() > math.exp(LEAST), 0.0)


class QuadraticForm(StoredModes):
    """Energies from the forms, in units of `unit` squared, so that none overflows or underflows."""

    def __init__(self, recurrence: Recurrence) -> None:
        ell, B, C = reaching_modes(recurrence)
        self.output_directions, output_size = _directions(C)
        self.input_directions, input_size = _directions(B.mT)
        (output_size, exponent), (input_size, other) = torch.frexp(output_size), torch.frexp(input_size)
        exponent = exponent + other
        largest = exponent.amax()
        self.unit = torch.ldexp(torch.ones_like(output_size[0]), largest)
        self.sizes = torch.ldexp(output_size * input_size, exponent - largest)[None]
        self.ell, self.positive, self.stable = ell[None], False, bool((ell.real < 0).all())
        self.roots = self.sizes * (-(2 * ell.real[None]).expm1()).rsqrt()
        hermitian, symmetric = pair_products(self.output_directions)
        other_hermitian, other_symmetric = pair_products(self.input_directions)
        self.hermitian, self.symmetric = hermitian.mul_(other_hermitian), symmetric.mul_(other_symmetric)
        inner = math.sqrt(max(len(self.input_directions), len(self.output_directions))) + math.sqrt(2 * len(ell))
        self.epsilon = EPSILON * (16 + inner) * torch.ones_like(ell.real[None, :1])

    @cached_property
    def tail_form(self) -> Tensor:
        """The form of Σ_{t≥τ} over (Re y, Im y), (2 mode, 2 mode) float64."""
        ell = self.ell[0]
        M = self.hermitian / _one_minus(ell.conj(), ell)
        S = self.symmetric / _one_minus(conjugate_of(ell).conj(), ell)
        return real_form(M, S)

    def energy(self, states: Tensor) -> Tensor:
        y = self.sizes[0, :, None] * states[0]
        x = torch.cat([y.real, y.imag])
        return (x * (self.tail_form @ x)).sum(0, keepdim=True).clamp(min=0)

    def tail(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the energy from each state on and a bound on its rounding error, (1, lag)."""
        return self.energy(states), reach_of(self.roots, states).square() * self.epsilon

    def bands(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ ‖K_t‖² over bins and a bound on its rounding error, (1, bin), without a difference of tails.

        A bin is cut into pieces whose lengths are powers of two; each is one form in the state at its start.
        """
        first, width = edges[:-1].long(), edges.diff().long()
        values, noise = torch.zeros_like(edges[None, 1:]), torch.zeros_like(edges[None, 1:])
        hermitian, symmetric = self.hermitian, self.symmetric
        for bit in range(int(width.max()).bit_length()):
            lags = 2**bit
            bins = (width & lags != 0).nonzero()[:, 0]
            if len(bins):
                states = self.states((first[bins] + (width[bins] & (lags - 1))).double())
                y = self.sizes[0, :, None] * states[0]
                whole = (y.conj() * (hermitian @ y)).real + (y * (symmetric @ y)).real
                values[:, bins] += whole.sum(0).clamp(min=0) / 2
                # A mode on the boundary has no known tail: fmin ignores NaN.
                here = torch.fmin(lags * reach_of(self.sizes, states).square(), reach_of(self.roots, states).square())
                noise[:, bins] += here * (self.epsilon + EPSILON * 8 * bit)
            if int(width.max()) >= 2 * lags:
                decay = powers(self.ell[0], self.ell.real.new_tensor(float(lags)))
                hermitian = torch.addcmul(hermitian, hermitian * decay.conj()[:, None], decay[None])
                symmetric = torch.addcmul(symmetric, symmetric * decay[:, None], decay[None])
        return values, noise


def _directions(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return columns of norm 1, and their norms (column,); also where squares overflow or underflow."""
    largest = torch.view_as_real(columns.resolve_conj()).abs().amax((0, 2)).clamp(min=torch.finfo(torch.float64).tiny)
    scaled = columns / largest
    length = square_of(scaled).sum(0).sqrt()
    return scaled / length, length * largest


def real_form(M: Tensor, S: Tensor) -> Tensor:
    """Return H, (…, 2 mode, 2 mode), over real and imaginary parts with zᵀHz = ½ (zᴴ M z + Re zᵀ S z)."""
    cross = -(M.imag + S.imag)
    rows = [torch.cat([M.real + S.real, cross], -1), torch.cat([cross.mT, M.real - S.real], -1)]
    return torch.cat(rows, -2).div_(2)


def pair_products(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return XᴴX and XᵀX, (column, column), from three products of real and imaginary parts."""
    real, imaginary = columns.real.contiguous(), columns.imag.contiguous()
    both, cross = real.mT @ real, real.mT @ imaginary
    imaginary = imaginary.mT @ imaginary
    return torch.complex(both + imaginary, cross - cross.mT), torch.complex(both - imaginary, cross + cross.mT)


def _one_minus(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 − e^{a_i + b_j} without cancellation, (mode, mode), for Re ≤ 0."""
    half = (first.imag[:, None] + second.imag).div_(2)
    sine, cosine = half.sin(), half.cos()
    size, margin = second.real.exp(), -second.real.expm1()
    both = first.real.exp()[:, None] * size
    apart = torch.addcmul(-first.real.expm1()[:, None], first.real.exp()[:, None], margin)  # 1 − |λ̄_i| |λ̄_j|
    return torch.complex(apart + 2 * both * sine.square(), -2 * both * sine * cosine)
