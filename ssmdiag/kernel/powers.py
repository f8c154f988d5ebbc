"""Powers λ̄^t at any lag, and their weights in the kernel.

    K_t = Re Σ_n w_n λ̄_n^t,     w_n = κ C_n B̄_n

λ̄^t = exp(ℓt), with the angle ω·t computed in twice float64's digits and reduced by multiples of 2π before
it is rounded: given ℓ, a power at lag 10⁹ has as many correct digits as at lag 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssmdiag.recurrence.discretisation import as_complex
from ssmdiag.recurrence.modal import Recurrence

MAX_LAG = 2**40
"""Largest lag at which the angle is accurate; beyond it the product of two 53-bit numbers is not."""
UNDERFLOW = 2000.0
"""Decay in nats past which a mode counts as zero: in float64 its square is."""

# 2π as a sum; all terms but the last have at most 14 bits, so that multiples up to 2³⁹ are exact.
_TURN = (6.28125, 0.0019352436065673828, 6.357004167512059e-08, 2.977396107439745e-12, 2.2884754904439327e-17)
_PI_REMAINDER = 1.2246467991473532e-16
_SPLITTER = 2.0**27 + 1


def retention(recurrence: Recurrence) -> Recurrence:
    """Return a recurrence whose kernel is the mean of |λ̄_n|^t over modes, (1, channel, lag).

    This is the share of a state that remains after t steps, whatever B and C are: the profile of selective
    families at their operating point, and of layers whose B or C is not known.
    """
    rate = recurrence.rate
    return replace(
        recurrence,
        log_eigenvalues=as_complex(-rate),
        conjugate_pairs=False,
        kernel_factor=1.0,
        input_matrix=as_complex(torch.ones_like(rate)),
        output_matrix=as_complex(torch.full_like(rate, 1 / recurrence.modes))[None],
        dense=None,
        taps=None,
    )


def modal_weights(recurrence: Recurrence) -> Tensor:
    """Return w = κ C B̄, (copy, channel, mode), for a layer in which each channel has a state of its own."""
    B, C = recurrence.matrices
    return recurrence.kernel_factor * (C * B)


def lags_of(lags: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """Return lags as float64 on a device. Raises ValueError if one is negative, fractional or past MAX_LAG."""
    values = torch.as_tensor(lags, device=device).to(torch.float64)
    if values.ndim != 1 or not bool(((values >= 0) & (values <= MAX_LAG) & (values == values.floor())).all()):
        raise ValueError(f"lags must be a list of whole numbers from 0 to 2**{MAX_LAG.bit_length() - 1}")
    return values


def powers(log_eigenvalues: Tensor, lags: Tensor) -> Tensor:
    """Return λ̄^t complex128 for ℓ and whole float64 lags of shapes that broadcast.

    λ̄ = 0 (Re ℓ = −∞) gives 1 at lag 0, as the state does.
    """
    modulus = (log_eigenvalues.real.clamp(min=-UNDERFLOW) * lags).exp()
    angle = _angle(log_eigenvalues.imag, lags)
    # Twice as fast as torch.polar, which computes one sine at a time.
    return torch.complex(modulus * angle.cos(), modulus * angle.sin())


def powers_minus_one(log_eigenvalues: Tensor, lags: Tensor) -> Tensor:
    """Return λ̄^t − 1 without cancellation, shapes as in `powers`."""
    exponent = log_eigenvalues.real.clamp(min=-UNDERFLOW) * lags
    angle = _angle(log_eigenvalues.imag, lags)
    half = (angle / 2).sin()
    return torch.complex(exponent.expm1() * angle.cos() - 2 * half.square(), exponent.exp() * angle.sin())


def is_real(log_eigenvalues: Tensor) -> bool:
    """Whether every mode is real and positive, which halves the arithmetic."""
    return not bool(log_eigenvalues.imag.any())


def _angle(frequency: Tensor, lags: Tensor) -> Tensor:
    """Return ω·t modulo 2π in [−π, π], rounded once."""
    # A mode on the negative axis has ω = π, which float64 cannot represent: the missing part is added.
    low = torch.where(frequency.abs() == math.pi, _PI_REMAINDER * frequency.sign(), 0.0)
    high = frequency
    if bool((high.abs() > math.pi).any()):
        high, low = _reduce(high, low)
    product = high * lags
    high, low = _reduce(product, _rounding(high, lags, product) + low * lags)
    return high + low


def _rounding(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """Return a·b − product exactly (Dekker)."""
    a_high, b_high = a * _SPLITTER, b * _SPLITTER
    a_high, b_high = a_high - (a_high - a), b_high - (b_high - b)
    a_low, b_low = a - a_high, b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


def _reduce(high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Return high + low minus the nearest multiple of 2π, again as an unevaluated sum."""
    turns = (high / math.tau).round()
    for part in _TURN:
        term = turns * part
        total = high - term
        shadow = total - high
        low = low + ((high - (total - shadow)) - (term + shadow))
        high = total
    total = high + low
    return total, low - (total - high)


def profile(recurrence: Recurrence) -> Recurrence:
    """Return the recurrence itself where it has B̄ and C, else its retention."""
    return retention(recurrence) if recurrence.layout == "none" else recurrence
