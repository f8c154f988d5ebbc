"""The modes that a real readout of a state can distinguish: the stored ones and their conjugates, each once.

y = κ Re(C h) reads Re h and Im h, so both λ̄^t and its conjugate are available wherever one is stored; a real mode
gives one number, not two. Modes that are equal, or each other's conjugates, hold the same number twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.kernel.powers import UNDERFLOW, _angle, is_real
from ssmdiag.recurrence.modal import Recurrence

ALIAS = 2.0**-50
"""Relative rounding of a frequency Δ·Im λ."""

LEAST_FREQUENCY = 1e-290
"""Radians per step below which a mode is its own conjugate."""


@dataclass(frozen=True, eq=False)
class Excluded:
    """Stored modes of each channel that add nothing to its memory, by the first reason; (channel,) int64."""

    not_finite: Tensor
    """NaN or infinite ℓ or B̄."""
    unstable: Tensor
    """|λ̄| > 1: the state has no bound."""
    marginal: Tensor
    """|λ̄| = 1: a memory spread over infinitely many lags, none of it at any one."""
    unreached: Tensor
    """B̄ is zero: nothing is ever written."""
    repeated: Tensor
    """Equal to another mode, or to its conjugate: the same number again."""

    def totals(self) -> dict[str, int]:
        """Return the modes excluded over all channels, by reason."""
        return {name: int(getattr(self, name).sum()) for name in REASONS}


REASONS = ("not_finite", "unstable", "marginal", "unreached", "repeated")
"""Fields of `Excluded`."""


@dataclass(frozen=True, eq=False)
class FullSpectrum:
    """Distinct modes of some channels, slowest first; `paired` marks those with a conjugate."""

    log_eigenvalues: Tensor
    """ℓ (channel, mode): float64 where every mode is real and positive, else complex128 with 0 ≤ Im ℓ ≤ π."""
    counted: Tensor
    """Which of them are modes, (channel, mode) bool; the others are padding."""
    paired: Tensor
    """Which of these have a conjugate, (channel, mode) bool."""
    excluded: Excluded
    stored: Tensor
    """Which stored mode of the channel each is, (channel, mode) int64."""

    @property
    def modes(self) -> Tensor:
        """Number of modes of each channel, conjugates included, (channel,) int64."""
        return self.counted.sum(1) + self.paired.sum(1)


def full_spectrum(recurrence: Recurrence, chunk: slice = slice(None), *, distinct: bool = True) -> FullSpectrum:
    """Return the modes of some channels that hold memory, with their conjugates.

    Where B̄ is stored, modes that it does not reach are left out. `distinct=False` keeps repeated modes: rounded
    states are no longer the same number.
    """
    ell = recurrence.log_eigenvalues[chunk]
    rate, frequency = -ell.real, ell.imag
    broken = rate.isnan() | ~frequency.isfinite() | (rate == -math.inf)
    unreached = torch.zeros_like(broken)
    if (written := _written(recurrence, chunk)) is not None:
        broken, unreached = broken | ~written.isfinite(), written == 0
    states = [broken, rate < 0, rate == 0, unreached]
    counted = ~(broken | (rate <= 0) | unreached)
    # λ̄ = 0 is a rate of +inf; past UNDERFLOW modes cannot be distinguished.
    rate = rate.clamp(max=UNDERFLOW).where(counted, math.inf)
    real = is_real(ell)
    frequency = frequency.where(counted & (rate < UNDERFLOW), 0.0)
    alike = torch.zeros_like(rate)
    if not real:
        frequency, alike = _folded(frequency)
    if (order := _slowest_first(rate, frequency, real)) is not None:
        rate, frequency, alike, counted = (values.gather(1, order) for values in (rate, frequency, alike, counted))
    repeated = torch.zeros_like(counted)
    near = frequency.diff().abs() <= torch.maximum(alike[:, 1:], alike[:, :-1])
    repeated[:, 1:] = counted[:, 1:] & (rate.diff() == 0) & near
    first_reasons = [(states[k] & ~_any(states[:k], broken)).sum(1) for k in range(len(states))]
    excluded = Excluded(*[*first_reasons, repeated.sum(1)])
    if distinct:
        counted = counted & ~repeated
    paired = counted & (frequency > 0) & (frequency < math.pi)
    stored = torch.arange(ell.shape[1], device=ell.device).expand(ell.shape) if order is None else order
    return _trimmed(-rate if real else torch.complex(-rate, frequency), counted, paired, excluded, stored)


def _written(recurrence: Recurrence, chunk: slice) -> Tensor | None:
    """Return |B̄| of each mode, (channel, mode), the largest over inputs; None where it is not in the weights."""
    B = recurrence.input_matrix
    if B is None or recurrence.layout == "dense":
        return None
    if recurrence.layout == "many inputs":
        return B.abs().amax(1)[None]
    return B.expand_as(recurrence.log_eigenvalues)[chunk].abs()


def _folded(frequency: Tensor) -> tuple[Tensor, Tensor]:
    """Return |ω| modulo 2π, in [0, π], and what rounding may have done to it, which is 0 below π.

    Where Δ·Im λ exceeds π it may alias to another mode; only rounding keeps the two apart.
    """
    size = frequency.abs()
    alike = (ALIAS * size).where(size > math.pi, 0.0)
    folded = _angle(frequency, frequency.new_ones(())).abs()
    folded = folded.where(folded > alike.clamp(min=LEAST_FREQUENCY), 0.0)
    return folded.where((math.pi - folded > alike) & (size != math.pi), math.pi), alike


def _any(masks: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(masks).any(0) if masks else torch.zeros_like(like)


def _slowest_first(rate: Tensor, frequency: Tensor, real: bool) -> Tensor | None:
    """Return the order by rate, and by frequency where rates are equal; None where already sorted."""
    if real and bool((rate.diff() >= 0).all()):
        return None
    order = frequency.argsort(dim=1)
    return order.gather(1, rate.gather(1, order).argsort(dim=1, stable=True))


def _trimmed(ell: Tensor, counted: Tensor, paired: Tensor, excluded: Excluded, stored: Tensor) -> FullSpectrum:
    """Move padding to the end, and cut the columns that no channel needs."""
    width = int(counted.sum(1).amax()) if counted.numel() else 0
    if width < ell.shape[1]:
        order = (~counted).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        ell, counted, paired, stored = (values.gather(1, order) for values in (ell, counted, paired, stored))
    return FullSpectrum(ell.where(counted, torch.full_like(ell, -UNDERFLOW)), counted, paired, excluded, stored)
