"""Exact energies of a layer's kernel, by stepping h ← λ̄ h + B̄ u in complex128 until nothing is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tests.assessment.trained_layers.layers import StateSpace

Array = NDArray[np.float64]
BLOCK = 512
"""Lags stepped through once; from one block to the next the state goes by the product of all its steps."""
NOTHING = 1e-16
"""Share of the energy at which stepping ends."""
LONGEST = 1 << 21


@dataclass(frozen=True)
class ExactEnergy:
    """Energy of the kernel that remains at every lag, of every channel; a state shared by all channels is one."""

    space: StateSpace

    @cached_property
    def left(self) -> Array:
        """E(τ) = Σ_{t ≥ τ} K_t², (channel, lag)."""
        return remaining(stepped_squares(self.space))

    @property
    def rates(self) -> Array:
        """−log |λ̄|, (channel, mode)."""
        return -np.log(np.abs(np.atleast_2d(self.space.decay)))

    def of(self, channel: int) -> ExactEnergy:
        """Return that of one channel; a state shared by all is one."""
        space, row = self.space, slice(channel, channel + 1)
        if space.decay.ndim == 1:
            return self
        return ExactEnergy(StateSpace(space.decay[row], space.drive[row], space.read[row], space.factor))

    def without(self, modes: NDArray[np.bool_], lags: int) -> Array:
        """Return E(τ) of the kernel without some modes, (channel, mode) bool, over so many lags."""
        kept = 1.0 - (modes[0][:, None] if self.space.decay.ndim == 1 else modes)
        left = remaining(stepped_squares(replace(self.space, drive=self.space.drive * kept)))[:, :lags]
        return np.pad(left, ((0, 0), (0, lags - left.shape[1])))


def remaining(squares: Array) -> Array:
    """Return Σ_{t ≥ τ} of the squares, smallest first."""
    return np.cumsum(squares[:, ::-1], 1)[:, ::-1]


def stepped_squares(space: StateSpace) -> Array:
    """Return K_t², (channel, lag); the squared Frobenius norm of the kernel of a shared state, one channel."""
    shared = space.decay.ndim == 1
    powers = np.empty((BLOCK, *space.decay.shape), complex)
    powers[0] = 1.0
    for step in range(1, BLOCK):
        powers[step] = powers[step - 1] * space.decay
    leap = powers[-1] * space.decay
    state, parts, total = np.ones_like(space.decay), [], 0.0
    slowest = float(np.abs(space.decay).max())
    size = float(np.abs(space.drive).sum() * np.abs(space.read).sum() * space.factor)
    while True:
        now = powers * state
        if shared:
            kernel = space.factor * ((space.read * now[:, None]) @ space.drive).real
            parts.append((kernel**2).sum((1, 2))[None])
        else:
            kernel = space.factor * (now * (space.read * space.drive)).sum(-1).real
            parts.append((kernel**2).T)
        total += float(parts[-1].sum())
        state = state * leap
        # No kernel from here on is larger than the sum of its modes.
        if (size * np.abs(state).max()) ** 2 <= NOTHING * total * (1 - slowest**2) or not size:
            return np.concatenate(parts, 1)
        if len(parts) * BLOCK >= LONGEST:
            raise ValueError(f"energy is left after {LONGEST:,} lags: the slowest mode has |λ̄| = {slowest}")
