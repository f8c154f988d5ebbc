"""The sequences λ̄_n^t in an orthonormal basis of the space they span (Takenaka, 1925; Malmquist, 1926).

    λ̄_n^t = Σ_{k≤n} L_nk φ_k(t),     L_nk = √(1 − |λ̄_k|²) / (1 − λ̄_n λ̄_k*) · Π_{j<k} (λ̄_n − λ̄_j)/(1 − λ̄_n λ̄_j*)

so that L Lᴴ = G, G_ij = 1/(1 − λ̄_i λ̄_j*). The energy of Σ w_n λ̄_n^t is the sum of squares ‖Lᵀw‖²: where
modes cancel it loses half the digits that wᵀG w* loses, and it is never negative. Every factor of L comes
from differences of ℓ, so that L has all its digits where modes touch each other or the boundary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def orthonormal_factor(log_eigenvalues: Tensor) -> Tensor:
    """Return Lᵀ, (channel, k, n), for ℓ (channel, mode) of modes sorted slowest first, all with Re ℓ < 0.

    Real ℓ (a real dtype) stands for real positive λ̄ and gives a real factor.
    """
    if not log_eigenvalues.is_complex():
        return _real_factor(log_eigenvalues)
    # Modes first: slices of them are then contiguous.
    ell = log_eigenvalues.T.contiguous()
    factor = ell.new_zeros(len(ell), *ell.shape)
    gain = (-(2 * ell.real).expm1()).sqrt()
    decay = ell.exp()
    product = torch.ones_like(ell)
    for k in range(len(ell)):
        distance = -_expm1(ell[k:] + ell[k].conj())
        product = product / distance
        torch.mul(product, gain[k], out=factor[k, k:])
        # Slowest first keeps the exponent from overflowing where λ̄_n is zero.
        product = product[1:] * (_expm1(ell[k + 1 :] - ell[k]) * decay[k])
    return factor.permute(2, 0, 1).contiguous()


def _real_factor(ell: Tensor) -> Tensor:
    """Return the same for real modes, all columns at once."""
    decay, margin = ell.exp(), -ell.expm1()
    # 1 − λ̄_n λ̄_k as a sum of what is not negative, (channel, k, n).
    closeness = torch.addcmul(margin[:, None], decay[:, None], margin[:, :, None]).reciprocal_()
    # λ̄_n − λ̄_k, which is zero at n = k and so ends the products; what is beyond must only be finite.
    ratio = (ell[:, None] - ell[:, :, None]).clamp_(max=0.0).expm1_().mul_(decay[:, :, None]).mul_(closeness)
    factor = closeness.mul_((-(2 * ell).expm1()).sqrt()[:, :, None])
    factor[:, 1:].mul_(ratio[:, :-1].cumprod(1))
    return factor


def _expm1(z: Tensor) -> Tensor:
    """Return e^z − 1 without cancellation."""
    half = (z.imag / 2).sin()
    return torch.complex(z.real.expm1() * z.imag.cos() - 2 * half.square(), z.real.exp() * z.imag.sin())
