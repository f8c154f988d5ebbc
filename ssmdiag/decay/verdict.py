"""The choice between decay laws: which one a kernel follows, or why none is named.

The choice is the simplest law whose residual is not clearly worse than that of the largest. A power law must also
leave too small a residual for a handful of exponentials, over enough decades to distinguish them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

from ssmdiag.decay.gauss_newton import LawFit
from ssmdiag.decay.profile import Profile

NEPER_DB = 20 / math.log(10)
"""dB per neper of amplitude."""
MODEL_ERROR_DB = 0.05
"""Residuals below this are the binned law's own error and the arithmetic's, not a difference between laws."""
FLAT_DB = 0.1
EXPONENTIAL_DB = 1.5
"""Largest rms residual of an exponential: kernels oscillate, and the rms over a bin ripples with them."""
PLAIN_DB = 0.1
"""An exponential this close is the law, unless a power explains part too: rates that nearly agree leave this much."""
EXPONENTIAL_DROP_DB = 10.0
RATE_ERROR = 0.02
"""Largest standard error of an exponential's rate, relative to it."""
SAME_RATE = 0.05
"""A truncated law with a rate this near the exponential's differs only by an oscillation at the first lags."""
RIPPLED_BLOCKS = 10
"""Fewest blocks from which an envelope that ripples by more than `POWER_DB` is read."""
POWER_DB = 0.3
"""Largest rms residual of a power law: the best four exponentials over four decades leave more."""
TRUNCATED_DB = 0.6
"""Largest rms residual of a truncated power law, which claims less: layers of many channels come near it."""
POWER_DECADES = 1.8
"""Decades of t + t₀ in the window: over fewer, three exponentials look like a power."""
TRUNCATED_DECADES = 1.0
"""Decades of t + t₀ before the cut-off 1/β."""
SMALLEST_EXPONENT = 0.2
SMALLEST_PART_DB = 3.0
"""Least fall of the kernel that each factor of a truncated power law must cause over the window."""
CONTRAST = 2.0
"""The residual of a rival of another kind must be this many times that of the law."""


class Law(Enum):
    """What a kernel decays by."""

    EXPONENTIAL = "exponential"
    POLYNOMIAL = "polynomial"
    TRUNCATED = "truncated"
    FLAT = "flat"
    FINITE = "finite"
    UNDETERMINED = "undetermined"


class DecayStatus(Enum):
    """Why there is a law, or why there is none; the value is a sentence for the user."""

    FITTED = "one law describes the kernel over the window"
    NO_LAW = "no law describes the kernel over the window"
    ROUGH = "the best law comes near the kernel, but not near enough to be named"
    INDISTINCT = "the laws fit too nearly alike to tell which one holds"
    SHORT_WINDOW = "the window spans too few decades of lags to tell the laws apart"
    LITTLE_DECAY = "the kernel decays too little over the window to tell the laws apart"
    UNRESOLVED = "the kernel rises or swings too slowly for its envelope to be seen"
    TOO_FEW = "too few bins of lags lie above the noise"
    FINITE = "a convolution: its kernel ends at its last tap"
    SHORT_MEMORY = "the memory ends within a few steps, too few to tell a law"
    SHORT_CONTEXT = "the context has too few lags to tell a law"
    GROWS = "the kernel still grows at the end of the context"
    UNBOUNDED = "a growing mode reaches the output: the kernel has no bound"
    ZERO = "the kernel is zero at every lag"
    TINY = "the kernel is too small to be distinguished from the arithmetic's noise"
    CANCELLED = "the modes cancel beyond float64's digits"
    NOT_FINITE = "the kernel is not finite"


LAWS = tuple(Law)
STATUSES = tuple(DecayStatus)
FITTED_LAWS = (Law.FLAT, Law.EXPONENTIAL, Law.POLYNOMIAL, Law.TRUNCATED)


def judge(profile: Profile, fits: Mapping[Law, LawFit], first: int, end: int) -> tuple[Tensor, Tensor]:
    """Return index of law and status by the rule this module opens with."""
    residual = {law: NEPER_DB * fit.residual for law, fit in fits.items()}
    flat, exponential, power, cut = (residual[law] for law in FITTED_LAWS)
    span = profile.last - first
    blocks = profile.blocks

    def holds(other: Tensor, parameters: int) -> Tensor:
        """Whether a law is not clearly worse than the truncated one, which has `parameters` more."""
        # Neighbouring residuals are correlated; twice the 5% point of F allows for that.
        allowance = 1 + 8 * parameters / (blocks - 4).clamp(min=1)
        return other**2 + MODEL_ERROR_DB**2 <= allowance * (cut**2 + MODEL_ERROR_DB**2)

    def decades(fit: LawFit, last: Tensor) -> Tensor:
        return ((last + fit.offset) / (first + fit.offset)).log10()

    rate, polynomial, truncated = fits[Law.EXPONENTIAL], fits[Law.POLYNOMIAL], fits[Law.TRUNCATED]
    drop = NEPER_DB * rate.rate * span
    power_drop = NEPER_DB * truncated.exponent * math.log(10) * decades(truncated, profile.last)
    cut_drop = NEPER_DB * truncated.rate * span
    # A memory that stops at once is level until then, but does not stay level.
    is_flat = (profile.last == end) & (flat <= FLAT_DB) & (drop <= 4 * FLAT_DB)
    same = (truncated.rate - rate.rate).abs() <= SAME_RATE * rate.rate
    plain = (exponential <= PLAIN_DB) & (power_drop < SMALLEST_PART_DB)
    exponential_holds = (holds(exponential, 2) | (same & (cut > POWER_DB)) | plain) & (exponential <= EXPONENTIAL_DB)
    exponential_stands_out = power >= torch.clamp(CONTRAST * exponential, min=0.5)
    exponential_drops = drop >= torch.clamp(8 * exponential, min=EXPONENTIAL_DROP_DB)
    exponential_wins = (
        exponential_holds
        & exponential_stands_out
        & exponential_drops
        & (rate.rate_error <= RATE_ERROR * rate.rate)
        & ((blocks >= RIPPLED_BLOCKS) | (exponential <= POWER_DB))
    )

    polynomial_holds = holds(power, 1) & (power <= POWER_DB)
    polynomial_stands_out = (exponential >= torch.clamp(3 * power, min=1.0)) & (
        polynomial.exponent >= SMALLEST_EXPONENT
    )
    polynomial_reaches = decades(polynomial, profile.last) >= POWER_DECADES
    polynomial_wins = polynomial_holds & polynomial_stands_out & polynomial_reaches
    truncated_holds = (cut <= TRUNCATED_DB) & ~holds(exponential, 2) & ~plain & ~holds(power, 1)
    truncated_stands_out = (
        (torch.minimum(exponential, power) >= torch.clamp(4 * cut, min=0.3))
        & (truncated.exponent >= SMALLEST_EXPONENT)
        & (power_drop >= SMALLEST_PART_DB)
        & (cut_drop >= SMALLEST_PART_DB)
    )
    # Past 1/β the exponential dominates: only earlier lags show the power.
    powered = torch.minimum(profile.last, 1 / truncated.rate.clamp(min=1e-300))
    truncated_reaches = decades(truncated, powered) >= TRUNCATED_DECADES
    truncated_wins = truncated_holds & truncated_stands_out & truncated_reaches

    law = torch.full_like(blocks, LAWS.index(Law.UNDETERMINED))
    status = torch.full_like(blocks, STATUSES.index(DecayStatus.ROUGH))
    for why, applies in (
        (
            DecayStatus.INDISTINCT,
            (exponential_holds & ~exponential_stands_out)
            | (polynomial_holds & ~polynomial_stands_out)
            | (truncated_holds & ~truncated_stands_out),
        ),
        (
            DecayStatus.SHORT_WINDOW,
            (polynomial_holds & polynomial_stands_out & ~polynomial_reaches)
            | (truncated_holds & truncated_stands_out & ~truncated_reaches),
        ),
        (
            DecayStatus.LITTLE_DECAY,
            (power_drop + cut_drop < EXPONENTIAL_DROP_DB) | (exponential_holds & ~exponential_drops),
        ),
        (DecayStatus.NO_LAW, (exponential > EXPONENTIAL_DB) & (cut > TRUNCATED_DB)),
    ):
        status[applies] = STATUSES.index(why)
    for name, wins in (
        (Law.TRUNCATED, truncated_wins),
        (Law.POLYNOMIAL, polynomial_wins),
        (Law.EXPONENTIAL, exponential_wins),
        (Law.FLAT, is_flat),
    ):
        law[wins] = LAWS.index(name)
        status[wins] = STATUSES.index(DecayStatus.FITTED)
    return law, status
