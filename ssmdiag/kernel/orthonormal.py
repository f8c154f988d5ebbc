"""The sequences λ̄_n^t in an orthonormal basis of the space they span (Takenaka, 1925; Malmquist, 1926).

    λ̄_n^t = Σ_{k≤n} L_nk φ_k(t),     L_nk = √(1 − |λ̄_k|²) / (1 − λ̄_n λ̄_k*) · Π_{j<k} (λ̄_n − λ̄_j)/(1 − λ̄_n λ̄_j*)

so that L Lᴴ = G, G_ij = 1/(1 − λ̄_i λ̄_j*). The energy of Σ w_n λ̄_n^t is the sum of squares ‖Lᵀw‖². It is never
negative, and where modes cancel it loses half as many digits as wᵀG w*.

Where modes come with their conjugates, each pair has two real functions (Kautz, 1954), so all arithmetic is real. With
D_k(z) = (1 − λ̄_k z)(1 − λ̄_k* z),

    λ̄_n^t = Σ_{k≤n} L_nk φ_k(t) + L'_nk φ'_k(t),     Π = Π_{j<k} (λ̄_n − λ̄_j)(λ̄_n − λ̄_j*)/D_j(λ̄_n)
    L_nk = √((1 − |λ̄_k|²)/2) |1 − λ̄_k| (1 + λ̄_n)/D_k(λ̄_n) Π,     L'_nk: both signs reversed

Every factor is computed from differences of ℓ, so L keeps all its digits where modes are close to each other or to the
boundary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BLOCK = 2**15
"""Pairs of modes processed at a time: 512 KiB of complex numbers, ..."""
FEWEST_ROWS = 8
"""... but at least so many rows of them."""


def orthonormal_factor(log_eigenvalues: Tensor) -> Tensor:
    """Return Lᵀ for ℓ (channel, mode) of modes sorted slowest first, all with Re ℓ < 0.

    Real ℓ (a real dtype) means real positive λ̄: the result is (channel, k, n) float64. Complex ℓ, 0 ≤ Im ℓ ≤ π, means
    these modes and their conjugates: the result is (channel, 2·k, n) complex128, all φ before all φ'. These are real,
    so that Re Σ w_n λ̄_n^t has the coordinates Re(Lᵀw).
    """
    return _paired_factor(log_eigenvalues) if log_eigenvalues.is_complex() else _real_factor(log_eigenvalues)


def _real_factor(ell: Tensor) -> Tensor:
    """Return the factor of real modes, all columns at once."""
    decay, margin = ell.exp(), -ell.expm1()
    # 1 − λ̄_n λ̄_k as a sum of non-negative terms, (channel, k, n).
    closeness = torch.addcmul(margin[:, None], decay[:, None], margin[:, :, None]).reciprocal_()
    # λ̄_n − λ̄_k is zero at n = k, so products beyond it are zero; their factors need only be finite.
    ratio = (ell[:, None] - ell[:, :, None]).clamp_(max=0.0).expm1_().mul_(decay[:, :, None]).mul_(closeness)
    factor = closeness.mul_((-(2 * ell).expm1()).sqrt()[:, :, None])
    factor[:, 1:].mul_(ratio[:, :-1].cumprod(1))
    return factor


def _paired_factor(ell: Tensor) -> Tensor:
    """Return the factor of modes with their conjugates, as many rows at a time as fit the cache."""
    channels, modes = ell.shape
    factor = ell.new_zeros(channels, 2, modes, modes)
    above, below = around_one(ell)
    rows = max(FEWEST_ROWS, BLOCK // max(1, ell.numel()))
    passed = torch.ones_like(ell[:, None])  # Π of the modes before
    for start in range(0, modes, rows):
        stop = min(start + rows, modes)
        ratio, inverse = _sections(ell[:, start:stop, None], ell[:, None, start:])
        products = torch.cat([passed, ratio], 1).cumprod(1)
        passed, inverse = products[:, -1:, stop - start :], inverse.mul_(products[:, :-1])
        for into, numerator, gain in ((factor[:, 0], above, below), (factor[:, 1], below, above)):
            part = inverse * gain.abs()[:, start:stop, None]
            torch.mul(part, numerator[:, None, start:], out=into[:, start:stop, start:])
    return factor.flatten(1, 2)


def _sections(own: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
    """Return (λ̄_n − λ̄_k)(λ̄_n − λ̄_k*)/D_k(λ̄_n) and √((1 − |λ̄_k|²)/2)/D_k(λ̄_n), (channel, k, n).

    Two transcendental functions per pair of modes give all four factors: with e^{iφ} − 1 = 2 sin(φ/2)(i cos(φ/2)
    − sin(φ/2)), φ = ω_n ± ω_k, m = |λ̄| and d = e^{r_k − r_n} − 1,

        1 − λ̄_n λ̄_k = (1 − m_n + m_n (1 − m_k)) − m_n m_k (e^{iφ} − 1),     λ̄_n − λ̄_k* = λ̄_k* (d + (1 + d)(e^{iφ} − 1))

    for the sum of frequencies; their difference gives the other two. No sum of real parts cancels.
    """
    (own_sine, own_cosine), (sine, cosine) = _half_angle(own.imag), _half_angle(later.imag)
    own_decay, decay = own.real.exp(), later.real.exp()
    both = decay * own_decay
    apart = torch.addcmul(-later.real.expm1(), decay, -own.real.expm1())
    change = (later.real - own.real).clamp_(max=0.0).expm1_()
    kept = change + 1
    cc, ss = cosine * own_cosine, sine * own_sine
    sums = torch.addcmul(sine * own_cosine, cosine, own_sine), cc - ss
    differences = (later.imag - own.imag).mul_(0.5).sin_(), cc.add_(ss)
    found = []
    for half_sine, half_cosine in (sums, differences):
        turn, swing = half_sine.square().mul_(2), half_cosine.mul_(half_sine).mul_(2)  # 1 − cos φ, sin φ
        distance = torch.complex(torch.addcmul(apart, both, turn), (both * swing).neg_())
        found.append((torch.complex(torch.addcmul(change, kept, turn, value=-1), swing.mul_(kept)), distance))
    (ratio, inverse), (other, distance) = found
    inverse.mul_(distance).reciprocal_()
    ratio.mul_(other).mul_(inverse).mul_(own_decay.square())
    return ratio, inverse.mul_((-(2 * own.real).expm1() / 2).sqrt())


def around_one(log_eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 + λ̄ and 1 − λ̄ of complex ℓ, 0 ≤ Im ℓ ≤ π, without cancellation."""
    decay, margin = log_eigenvalues.real.exp(), -log_eigenvalues.real.expm1()
    sine, cosine = _half_angle(log_eigenvalues.imag)
    swing = 2 * decay * sine * cosine
    above, below = (torch.addcmul(margin, 2 * decay, half.square()) for half in (cosine, sine))
    return torch.complex(above, swing), torch.complex(below, -swing)


def _half_angle(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return sine and cosine of ω/2."""
    # A frequency of float64's π means a mode on the negative axis.
    return (angle / 2).sin(), (angle / 2).cos().where(angle != math.pi, 0.0)
