"""What a spectrum remembers once its state is rounded at every step.

A state of relative precision ε takes up rounding noise of variance ε²/3 of its own at every step, and the recurrence
accumulates it:

    N_ii = (ε²/3) G_ii / (1 − |λ̄_i|²),     MF_ε(τ) = v_τᴴ (G + N)⁻¹ v_τ,     Σ_τ MF_ε(τ) = tr((G + N)⁻¹ G)

G + N cannot be solved with in float64 where ε is float32's. With G = L Lᴴ of `orthonormal` and D = diag(1 − |λ̄|²),

    [(D L)ᴴ; (ε/√3) I] = Q R     →     MF_ε(τ) = ‖R⁻ᴴ D v_τ‖²,     Σ_τ MF_ε(τ) = ‖upper half of Q‖²

which loses half as many digits. Like MF, MF_ε never rises with τ. Modes that are equal round apart, so each counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ssmdiag.capacity.full_spectrum import FullSpectrum, full_spectrum
from ssmdiag.capacity.reconstruction import dense_channels, each_chunk, states_of
from ssmdiag.cores import one_thread, orthogonal
from ssmdiag.kernel.dense import krylov, realise, states_at
from ssmdiag.kernel.gramian import gramian_factor
from ssmdiag.kernel.orthonormal import orthonormal_factor
from ssmdiag.kernel.powers import lags_of, powers
from ssmdiag.kernel.response import square_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ssmdiag.recurrence import DenseRealisation, Recurrence

INT8_RANGE = 4.0
"""Standard deviations of a state that the 127 steps of an 8-bit integer are stretched over."""
STATE_PRECISION = {"bf16": 2.0**-9, "fp16": 2.0**-12, "int8": INT8_RANGE / 254, "float32": 2.0**-25}
"""ε of a state's format: half the spacing of numbers just below 1, and for int8 half a step of its scale.

The smallest relative error of a binade, whose other end is rounded twice as coarsely: simulated states that were kept
in bf16 came out 0.2 to 0.3 of a mode below what is said here.
"""

PANEL = 64
"""Columns that are made triangular at a time; even, so that no mode's parts are separated."""


@one_thread()
def noisy_capacity(recurrence: Recurrence, state_dtype: str | float) -> Tensor:
    """Return tr((G + N)⁻¹ G) of every channel, (channel,) float64: the modes that survive rounding.

    `state_dtype` is a key of `STATE_PRECISION`, or ε itself. Modes that hold no memory count for nothing; NaN where a
    dense state has no Gramian. Raises ValueError for another format, or ε that is not positive.
    """
    precision, recurrence = precision_of(state_dtype), realise(recurrence)
    result = torch.zeros(recurrence.channels, dtype=torch.float64, device=recurrence.log_eigenvalues.device)

    def fill(chunk: slice) -> None:
        (result[chunk],) = noisy_states(recurrence, chunk).survivors([precision])

    each_chunk(recurrence, 0, fill)
    return result


@one_thread()
def noisy_memory_function(recurrence: Recurrence, lags: Tensor | Sequence[int], state_dtype: str | float) -> Tensor:
    """Return MF_ε, (channel, lag) float64, at whole lags up to 2⁴⁰; else as `noisy_capacity`."""
    precision, recurrence = precision_of(state_dtype), realise(recurrence)
    at = lags_of(lags, recurrence.log_eigenvalues.device)
    result = torch.zeros(recurrence.channels, len(at), dtype=torch.float64, device=at.device)

    def fill(chunk: slice) -> None:
        states = noisy_states(recurrence, chunk)
        result[chunk] = states.memory(states.rounded(precision), at)

    each_chunk(recurrence, states_of(recurrence) * len(at), fill)
    return result


def precision_of(state_dtype: str | float) -> float:
    """Return ε of a format, or ε itself."""
    known = STATE_PRECISION.get(state_dtype) if isinstance(state_dtype, str) else state_dtype
    if known is None or not known > 0:
        raise ValueError(f"a state is one of {', '.join(STATE_PRECISION)}, or a precision above 0, not {state_dtype!r}")
    return known


def noisy_states(recurrence: Recurrence, chunk: slice) -> NoisyStates:
    """Return some channels of a realised recurrence, ready to be rounded."""
    if recurrence.dense is None:
        return _modal(full_spectrum(recurrence, chunk, distinct=False))
    dense, usable = dense_channels(recurrence, chunk)
    signal, converged = gramian_factor(dense.state_matrix, dense.input_matrix[..., None])
    noise, _ = gramian_factor(dense.state_matrix, signal.square().sum(1).sqrt().diag_embed())
    # A state that is never written has no noise either, and must not be divided by it.
    idle = (noise == 0).all(1).to(noise.dtype).diag_embed()
    return NoisyStates(signal, torch.cat([noise, idle], 1), usable & converged, dense=dense)


def _modal(spectrum: FullSpectrum) -> NoisyStates:
    ell, known = spectrum.log_eigenvalues, spectrum.modes >= 0
    factor, weight = orthonormal_factor(ell), -(2 * ell.real).expm1() * spectrum.counted
    if not ell.is_complex():
        return NoisyStates(factor * weight[:, None], None, known, ell=ell, weight=weight[..., None])
    # A mode and its conjugate round as √2 times their real and imaginary parts do.
    both = weight * spectrum.paired * math.sqrt(2)
    weight = torch.stack([both.where(spectrum.paired, weight), both], 2)
    rows = torch.view_as_real(factor.unflatten(1, (2, -1))).transpose(1, 2) * weight[:, None, None]
    return NoisyStates(rows.flatten(1, 2).flatten(2), None, known, ell=ell, weight=weight)


@dataclass(frozen=True, eq=False)
class NoisyStates:
    """Factors of what is written to some states and of what rounding adds to them."""

    signal: Tensor
    """(channel, row, state): upper triangular (D L)ᴴ, in blocks where modes have parts; or a dense state's factor."""
    noise: Tensor | None
    """A factor of N for ε² = 3, (channel, row, state); None for the identity."""
    known: Tensor
    """(channel,) bool."""
    ell: Tensor | None = None
    weight: Tensor | None = None
    """D, (channel, mode, part)."""
    dense: DenseRealisation | None = None

    def rounded(self, precision: float) -> Tensor:
        """Return R of the state rounded to ε, (channel, state, state)."""
        if self.noise is None:
            return _triangle_above(self.signal, precision / math.sqrt(3))
        return self._with_shares(precision)[0]

    def survivors(self, precisions: Sequence[float]) -> list[Tensor]:
        """Return what survives each ε, (channel,)."""
        if self.noise is None:  # tr((G + N)⁻¹ G) = Σ σ²/(σ² + ε²/3): one decomposition serves all
            squares = torch.linalg.svdvals(self.signal).square()
            return [(squares / (squares + epsilon**2 / 3)).sum(1) for epsilon in precisions]
        return [self._with_shares(epsilon)[1] for epsilon in precisions]

    def in_formats(self, own: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return R of the state in its own format, and what survives in each of `STATE_PRECISION`, (channel,)."""
        if self.noise is None:
            survivors = self.survivors(list(STATE_PRECISION.values()))
            return self.rounded(STATE_PRECISION[own]), dict(zip(STATE_PRECISION, survivors, strict=True))
        both = {name: self._with_shares(epsilon) for name, epsilon in STATE_PRECISION.items()}
        return both[own][0], {name: shares for name, (_, shares) in both.items()}

    def _with_shares(self, precision: float) -> tuple[Tensor, Tensor]:
        """Return R and what survives of a dense state rounded to ε."""
        assert self.noise is not None
        Q, factor = orthogonal(torch.cat([self.signal, precision / math.sqrt(3) * self.noise], 1))
        shares = square_of(Q[:, : self.signal.shape[1]]).sum((1, 2))
        return factor, shares.where(self.known, torch.nan)

    def memory(self, factor: Tensor, lags: Tensor) -> Tensor:
        """Return MF_ε for R of `rounded`, (channel, lag), at lags (lag,), or (channel, lag) of a modal state."""
        if self.dense is None:
            assert self.ell is not None
            assert self.weight is not None
            at = lags.expand(len(self.ell), -1)[:, None]
            if self.ell.is_complex():
                parts = torch.view_as_real(powers(self.ell[..., None], at)).movedim(3, 2)
            else:
                parts = (self.ell[..., None] * at).exp()[:, :, None]
            states = (parts * self.weight[..., None]).flatten(1, 2)
        else:
            states = states_at(self.dense, lags)
        values = square_of(torch.linalg.solve_triangular(factor.mH, states, upper=False)).sum(1)
        return values.where(self.known[:, None], torch.nan)

    def lengths(self, factor: Tensor, shares: Sequence[float]) -> Tensor:
        """Return the largest lags with MF_ε ≥ each share for R of `rounded`, (share, channel) float64; −1 for none.

        Found by bisection: MF_ε never rises, and Σ MF_ε ≤ N leaves no length above N / share.
        """
        wanted = torch.tensor(shares, dtype=torch.float64, device=factor.device)
        bound = (self.signal.shape[-1] / wanted).floor() + 1
        if self.dense is not None:
            columns, _ = krylov(self.dense.state_matrix, self.dense.input_matrix[..., None], int(bound.max()))
            values = square_of(torch.linalg.solve_triangular(factor.mH, columns, upper=False)).sum(1)
            return (values >= wanted[:, None, None]).sum(2) - 1.0
        high = bound.repeat(len(factor), 1)
        low = torch.full_like(high, -1.0)
        while bool((high - low > 1).any()):
            middle = ((low + high) / 2).floor()
            enough = self.memory(factor, middle.clamp(min=0)) >= wanted
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return low.T


def _triangle_above(upper: Tensor, scale: float) -> Tensor:
    """Return R of [upper; scale I], a fifth of the work of any others: no row is touched before its first column."""
    size = upper.shape[-1]
    factor, filled = torch.zeros_like(upper), upper[:, :0]
    for start in range(0, size, PANEL):
        stop = min(start + PANEL, size)
        width = stop - start
        fresh = upper.new_zeros(len(upper), width, size - start)
        fresh.diagonal(dim1=1, dim2=2).fill_(scale)
        rows = torch.cat([upper[:, start:stop, start:], filled, fresh], 1)
        panel, reflectors = torch.geqrf(rows[..., :width])
        factor[:, start:stop, start:stop] = panel[:, :width].triu()
        rest = torch.ormqr(panel, reflectors, rows[..., width:], transpose=True)
        factor[:, start:stop, stop:], filled = rest[:, :width], rest[:, width:]
    return factor
