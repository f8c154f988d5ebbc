"""What a spectrum remembers once its state is rounded at every step.

A state of relative precision ε takes up rounding noise of variance ε²/3 of its own square at every step, and the
recurrence accumulates it. Of an input with a mean of m standard deviations the state has the mean m/(1 − λ̄), which says
nothing and is rounded too:

    N_ii = (ε²/3)(G_ii + m²/|1 − λ̄_i|²)/(1 − |λ̄_i|²),   MF_ε(τ) = v_τᴴ (G + N)⁻¹ v_τ,   Σ_τ MF_ε(τ) = tr((G + N)⁻¹ G)

`rounding` says what a format's own step makes of N, also for the real and the imaginary part apart. G + N cannot be
solved with in float64 where ε is float32's. With G = L Lᴴ of `orthonormal` and N = K Kᴴ, mode by mode,

    [(K⁻¹ L)ᴴ; I] = Q R     →     MF_ε(τ) = ‖R⁻ᴴ K⁻¹ v_τ‖²,     Σ_τ MF_ε(τ) = Σ σ²/(σ² + 1), σ of K⁻¹ L

which loses half as many digits. Like MF, MF_ε never rises with τ. Modes that are equal round apart, so each counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ssmdiag.capacity.full_spectrum import FullSpectrum, full_spectrum
from ssmdiag.capacity.reconstruction import dense_channels, each_chunk, states_of
from ssmdiag.capacity.rounding import (
    STATE_PRECISION,
    Numbers,
    Rounding,
    input_power,
    largest_number,
    modal_numbers,
    step_noise,
    swallows,
)
from ssmdiag.cores import one_thread, orthogonal, singular_values
from ssmdiag.kernel.dense import krylov, realise, states_at
from ssmdiag.kernel.gramian import gramian_factor
from ssmdiag.kernel.orthonormal import around_one, orthonormal_factor
from ssmdiag.kernel.powers import lags_of, powers
from ssmdiag.kernel.response import square_of
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

PANEL = 64
"""Columns that are made triangular at a time; even, so that no mode's parts are separated."""
_COARSE = ("bf16", "fp16", "int8")
"""Formats whose noise float64 still tells from a state when it is squared."""


@one_thread()
def noisy_capacity(recurrence: Recurrence, state_dtype: str | float, rounding: Rounding | None = None) -> Tensor:
    """Return tr((G + N)⁻¹ G) of every channel, (channel,) float64: the modes that survive rounding.

    `state_dtype` is a key of `STATE_PRECISION`, or ε itself, whose errors are white. Modes that hold no memory count
    for nothing; NaN where a dense state has no Gramian. Raises ValueError for another format, or ε that is not above 0.
    """
    precision_of(state_dtype)
    recurrence = realise(recurrence)
    rounding = complete(rounding or Rounding(), recurrence)
    work = lambda chunk: noisy_states(recurrence, chunk, rounding).survivors(state_dtype)  # noqa: E731
    return torch.cat(each_chunk(recurrence, 0, work))


@one_thread()
def noisy_memory_function(
    recurrence: Recurrence,
    lags: Tensor | Sequence[int],
    state_dtype: str | float,
    rounding: Rounding | None = None,
) -> Tensor:
    """Return MF_ε, (channel, lag) float64, at whole lags up to 2⁴⁰; else as `noisy_capacity`."""
    precision_of(state_dtype)
    recurrence = realise(recurrence)
    rounding = complete(rounding or Rounding(), recurrence)
    at = lags_of(lags, recurrence.log_eigenvalues.device)

    def work(chunk: slice) -> Tensor:
        states = noisy_states(recurrence, chunk, rounding)
        return states.memory(states.rounded(state_dtype), at)

    return torch.cat(each_chunk(recurrence, states_of(recurrence) * len(at), work))


def precision_of(state_dtype: str | float) -> float:
    """Return ε of a format, or ε itself."""
    known = STATE_PRECISION.get(state_dtype) if isinstance(state_dtype, str) else state_dtype
    if known is None or not known > 0:
        raise ValueError(f"a state is one of {', '.join(STATE_PRECISION)}, or a precision above 0, not {state_dtype!r}")
    return known


def complete(rounding: Rounding, recurrence: Recurrence) -> Rounding:
    """Return the assumptions with the largest number of a layer, where its int8 scale is the whole layer's."""
    if rounding.int8_scale != "layer" or rounding.largest is not None:
        return rounding
    built = realise(recurrence)
    found = each_chunk(built, 0, lambda chunk: largest_number(noisy_states(built, chunk, rounding).numbers))
    return replace(rounding, largest=max(0.0, *found))


def noisy_states(recurrence: Recurrence, chunk: slice, rounding: Rounding | None = None) -> NoisyStates:
    """Return some channels of a realised recurrence, ready to be rounded."""
    rounding = rounding or Rounding()
    if recurrence.layout == "finite":
        raise ValueError(
            f"{module_name(recurrence.layer)} is a convolution: its state is its input, `assess_capacity` counts it"
        )
    if recurrence.dense is None:
        return _modal(recurrence, chunk, rounding)
    dense, usable = dense_channels(recurrence, chunk)
    A, B = dense.state_matrix, dense.input_matrix
    factor, converged = gramian_factor(A, B[..., None])
    change = A - torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    mean = torch.linalg.solve_ex(-change, B[..., None])[0][..., 0] if rounding.input_mean else torch.zeros_like(B)
    mean = (rounding.input_mean * mean).abs().nan_to_num(0.0, posinf=0.0)
    scale = rounding.input_scale or 1.0
    values = mean * scale, factor.square().sum(1), B.square(), B.square() + (factor @ change.mT).square().sum(1)
    numbers = Numbers(values[0][..., None], *(value[..., None] * scale**2 for value in values[1:]))
    return NoisyStates(
        factor, usable & converged, rounding, numbers, torch.full_like(B, scale**2)[..., None], dense=dense
    )


def _modal(recurrence: Recurrence, chunk: slice, rounding: Rounding) -> NoisyStates:
    spectrum = full_spectrum(recurrence, chunk, distinct=False)
    ell, counted, known = spectrum.log_eigenvalues, spectrum.counted, spectrum.modes >= 0
    power, pseudo = (values.gather(1, spectrum.stored) for values in input_power(recurrence, chunk))
    # Conjugate modes stand for each other: the one with ω < 0 has b* at −ω.
    pseudo = pseudo.where(recurrence.frequency[chunk].gather(1, spectrum.stored).sin() >= 0, pseudo.conj())
    power = power.where(counted, 1.0).clamp(1e-290, 1e290)
    phase = (pseudo / power).where(counted, 0.0)
    numbers = modal_numbers(ell, power, power * phase, spectrum.paired, rounding)
    unit = power * (rounding.input_scale or 1.0) ** 2
    return NoisyStates(orthonormal_factor(ell), known, rounding, numbers, unit[..., None], spectrum, phase)


@dataclass(frozen=True, eq=False)
class NoisyStates:
    """Factors of what is written to some states, and the numbers of which rounding adds to them."""

    factor: Tensor
    """Lᴴ of `orthonormal_factor`, (channel, row, mode); or a dense state's factor."""
    known: Tensor
    """(channel,) bool."""
    rounding: Rounding
    numbers: Numbers
    unit: Tensor
    """|b|² of the input, which noise is compared with, (channel, mode, 1)."""
    spectrum: FullSpectrum | None = None
    phase: Tensor | None = None
    """b²/|b|², (channel, mode)."""
    dense: DenseRealisation | None = None

    def rounded(self, state_dtype: str | float) -> Rounded:
        """Return the state rounded to a format, or to ε."""
        noise = self._noise(state_dtype)
        if self.dense is not None:
            spread = self._spread(noise[..., 0])
            # A state that is never written has no noise either, and must not be divided by it.
            idle = (spread == 0).all(1).to(spread.dtype).diag_embed()
            Q, R = orthogonal(torch.cat([self.factor, spread, idle], 1))
            return Rounded(R, None, square_of(Q[:, : self.factor.shape[1]]).sum((1, 2)))
        whitening = self._whitening(noise)
        return Rounded(_triangle_above(self._signal(whitening), 1.0), whitening)

    @cached_property
    def _own_spread(self) -> Tensor:
        """A factor of the noise of a dense state whose numbers take up their own variance at every step."""
        return self._accumulated(self.numbers.variance[..., 0])

    def _accumulated(self, noise: Tensor) -> Tensor:
        assert self.dense is not None
        return gramian_factor(self.dense.state_matrix, noise.sqrt().diag_embed())[0]

    def _spread(self, noise: Tensor) -> Tensor:
        """Return a factor of what a dense state accumulates of noise (channel, state)."""
        variance = self.numbers.variance[..., 0]
        share = (noise / variance).nan_to_num(0.0).amax(1, keepdim=True)
        if bool(((noise - share * variance).abs() <= 1e-12 * noise).all()):  # as of every format at its own size
            return self._own_spread * share.sqrt()[..., None]
        return self._accumulated(noise)

    def survivors(self, state_dtype: str | float) -> Tensor:
        """Return what survives, (channel,); NaN where numbers are beyond float64."""
        return self.survivors_of([state_dtype])[0]

    def swallowed(self, state_dtype: str) -> Tensor:
        """Return the share of a channel's numbers whose steps rounding swallows, (channel,); NaN without numbers."""
        counted = self.numbers.variance > 0
        if self.spectrum is not None:
            counted &= self.spectrum.counted[..., None]
        lost = swallows(self.numbers, state_dtype, self.rounding) & counted
        return lost.flatten(1).sum(1) / counted.flatten(1).sum(1)

    def survivors_of(self, formats: Sequence[str | float]) -> list[Tensor]:
        """Return what survives each format, (channel,).

        Where all errors are but so many times as large as those of float32, one decomposition serves both.
        """
        if self.dense is not None:
            shares = [self.rounded(name).shares for name in formats]
            return [some.where(self.known, torch.nan) for some in shares if some is not None]
        finest, found = self._noise("float32"), []
        squares = singular_values(self._signal(self._whitening(finest))).square()
        for name in formats:
            noise = self._noise(name)
            ratios = (noise / finest).nan_to_num(0.0).flatten(1)
            times = torch.nn.functional.pad(ratios, (0, 1)).amax(1, keepdim=True)  # there may be no mode
            survivors = (squares / (squares + times)).sum(1)
            others = ((noise - times[..., None] * finest).abs() > 1e-12 * noise).flatten(1).any(1)
            if bool(others.any()):
                signal = self._signal(self._whitening(noise))[others]
                survivors[others] = _survivors_of_coarse(signal) if name in _COARSE else _shares(signal)
            found.append(survivors)
        return found

    def _noise(self, state_dtype: str | float) -> Tensor:
        """Return the variance of a step's errors for an input of variance |b|² = 1, (channel, mode, part)."""
        if isinstance(state_dtype, str):
            return step_noise(self.numbers, state_dtype, self.rounding) / self.unit
        size = self.numbers.mean.square() + self.numbers.variance
        size = (size.sum(-1, keepdim=True) / size.shape[-1]).expand_as(size) if self.dense is None else size
        return state_dtype**2 / 3 * size / self.unit

    def _whitening(self, noise: Tensor) -> Tensor:
        """Return K⁻¹ on the numbers of a mode, (channel, mode, 1), or (channel, mode, 3): below a diagonal of two."""
        assert self.spectrum is not None
        ell, counted, paired = self.spectrum.log_eigenvalues, self.spectrum.counted, self.spectrum.paired
        margin = -(2 * ell.real).expm1()
        total = noise.sum(-1) / margin
        if not ell.is_complex():
            return (total.rsqrt() * counted)[..., None]
        assert self.phase is not None
        above, below = around_one(ell)
        # A mode and its conjugate round as √2 times their real and imaginary parts do.
        apart = (noise[..., 0] - noise[..., 1]) * self.phase.conj() / (above * below)
        first = total.where(~paired, total + apart.real)
        cross = apart.imag / first
        second = (total - apart.real - cross * apart.imag).clamp(min=1e-12 * total)
        one = (first / 2).rsqrt().where(paired, first.rsqrt()) * counted
        other = (second / 2).rsqrt() * paired
        return torch.stack([one, -cross * other, other], -1)

    def _signal(self, whitening: Tensor) -> Tensor:
        """Return (K⁻¹ L)ᴴ, (channel, row, state), upper triangular in blocks where modes have parts."""
        if not self.factor.is_complex():
            return self.factor * whitening[:, None, :, 0]
        rows = torch.view_as_real(self.factor.unflatten(1, (2, -1))).transpose(1, 2).flatten(1, 2)
        return _whitened(rows, whitening[:, None]).flatten(2)

    def memory(self, rounded: Rounded, lags: Tensor) -> Tensor:
        """Return MF_ε, (channel, lag), at lags (lag,), or (channel, lag) of a modal state."""
        if self.dense is None:
            assert self.spectrum is not None
            assert rounded.whitening is not None
            ell, at = self.spectrum.log_eigenvalues, lags.expand(len(self.factor), -1)[:, None]
            if ell.is_complex():
                parts = torch.view_as_real(powers(ell[..., None], at))
                states = _whitened(parts, rounded.whitening[:, :, None]).movedim(3, 2).flatten(1, 2)
            else:
                states = (ell[..., None] * at).exp() * rounded.whitening
        else:
            states = states_at(self.dense, lags)
        values = square_of(torch.linalg.solve_triangular(rounded.factor.mH, states, upper=False)).sum(1)
        return values.where(self.known[:, None], torch.nan)

    def lengths(self, rounded: Rounded, shares: Sequence[float]) -> Tensor:
        """Return the largest lags with MF_ε ≥ each share, (share, channel) float64; −1 for none.

        Found by bisection: MF_ε never rises, and Σ MF_ε ≤ N leaves no length above N / share.
        """
        factor = rounded.factor
        wanted = torch.tensor(shares, dtype=torch.float64, device=factor.device)
        bound = (factor.shape[-1] / wanted).floor() + 1
        if self.dense is not None:
            columns, _ = krylov(self.dense.state_matrix, self.dense.input_matrix[..., None], int(bound.max()))
            values = square_of(torch.linalg.solve_triangular(factor.mH, columns, upper=False)).sum(1)
            return (values >= wanted[:, None, None]).sum(2) - 1.0
        high = bound.repeat(len(factor), 1)
        low = torch.full_like(high, -1.0)
        while bool((high - low > 1).any()):
            middle = ((low + high) / 2).floor()
            enough = self.memory(rounded, middle.clamp(min=0)) >= wanted
            low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
        return low.T


@dataclass(frozen=True, eq=False)
class Rounded:
    """A rounded state: R of [(K⁻¹ L)ᴴ; I] and K⁻¹; of a dense state R of its own basis and what survives."""

    factor: Tensor
    whitening: Tensor | None
    shares: Tensor | None = None


def _shares(signal: Tensor) -> Tensor:
    """Return tr((I + M)⁻¹ M) of M = signalᴴ signal."""
    squares = singular_values(signal).square()
    return (squares / (squares + 1)).sum(1)


def _survivors_of_coarse(signal: Tensor) -> Tensor:
    """Return the same, a third of the work, where M's largest value is under 10⁹ because a format is coarse."""
    both = signal.mT @ signal
    both.diagonal(dim1=1, dim2=2).add_(1.0)
    lower = torch.linalg.cholesky_ex(both)[0]
    one = torch.eye(both.shape[-1], dtype=both.dtype, device=both.device)
    inverse = torch.linalg.solve_triangular(lower, one.expand_as(lower), upper=False)
    return signal.shape[-1] - inverse.square().sum((1, 2))


def _whitened(parts: Tensor, whitening: Tensor) -> Tensor:
    """Return K⁻¹ on real and imaginary parts, both in the last dimension."""
    real, imag = parts.unbind(-1)
    one, cross, other = whitening.unbind(-1)
    return torch.stack([real * one, real * cross + imag * other], -1)


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
