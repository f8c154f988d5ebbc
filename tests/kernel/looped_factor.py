"""The orthonormal factor one mode after another, over a spectrum and its conjugates: a slow way to every energy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmdiag.kernel.powers import powers
from ssmdiag.recurrence.modal import Recurrence


def looped_factor(ell: Tensor) -> Tensor:
    """Return Lᵀ (k, n) complex128 of ℓ (mode,), slowest first: every mode by itself, conjugates like all others."""
    factor = ell.new_zeros(len(ell), len(ell))
    product = torch.ones_like(ell)
    for k in range(len(ell)):
        product = product / -expm1(ell[k:] + ell[k].conj())
        factor[k, k:] = product * (-(2 * ell.real[k]).expm1()).sqrt()
        product = product[1:] * (expm1(ell[k + 1 :] - ell[k]) * ell[k].exp())
    return factor


def closed_spectrum(recurrence: Recurrence, channel: int) -> tuple[Tensor, Tensor]:
    """Return ℓ (2·mode,), slowest first, and w (copy, 2·mode) of a channel's K_t = Σ w λ̄^t, conjugates included."""
    assert recurrence.output_matrix is not None
    assert recurrence.input_matrix is not None
    ell = recurrence.log_eigenvalues[channel]
    ell = torch.complex(ell.real.clamp(min=-2000.0), ell.imag)
    weights = recurrence.kernel_factor / 2 * recurrence.output_matrix[:, channel] * recurrence.input_matrix[channel]
    mirrored = torch.where(ell.imag.abs() == math.pi, ell, ell.conj())  # float64's π is an angle like −π
    ell, weights = torch.cat([ell, mirrored]), torch.cat([weights, weights.conj()], 1)
    order = ell.real.neg().argsort(stable=True)
    return ell[order], weights[:, order]


class LoopedEnergy:
    """E(τ) of one channel by the looped factor."""

    def __init__(self, recurrence: Recurrence, channel: int) -> None:
        self.ell, self.weights = closed_spectrum(recurrence, channel)
        self.factor = looped_factor(self.ell)

    def at(self, lag: int) -> float:
        state = powers(self.ell, torch.tensor(float(lag), dtype=torch.float64))
        return float((self.factor @ (self.weights * state).T).abs().square().sum())

    def horizon(self, share: float) -> int:
        """Return the first lag with E(τ) ≤ (1 − share) E(0), by bisection."""
        target, low, high = (1 - share) * self.at(0), 0, 2**40
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.at(middle) > target else (low, middle)
        return high


def expm1(z: Tensor) -> Tensor:
    """Return e^z − 1 without cancellation."""
    half = (z.imag / 2).sin()
    return torch.complex(z.real.expm1() * z.imag.cos() - 2 * half.square(), z.real.exp() * z.imag.sin())
