"""The memory function of a spectrum, MF(τ): how well a linear readout of the state rebuilds the input τ steps ago.

    MF(τ) = v_τᴴ G⁻¹ v_τ = ‖A^τ b‖² = 1 − Σ_{j≤τ} |β_j|²,     Σ_τ MF(τ) = N

for independent inputs (Guan et al., 2025, arXiv 2510.00563); 1 − NMSE of the best readout, in [0, 1]. G is too
ill-conditioned to be solved with, so it never is: A, b and β are those of `cascade`, which are orthonormal. MF never
rises with τ, and it depends on the distinct eigenvalues alone: B̄ cancels, as long as it reaches every mode.

A layer with many inputs on one state (S5, LRU) is analysed with one input: the signal along any one direction of its
features, all others zero. This is what the spectrum offers; together, all inputs share the same N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssmdiag.capacity.cascade import Cascade, cascade_of, dense_cascade
from ssmdiag.capacity.full_spectrum import Excluded, full_spectrum
from ssmdiag.capacity.window import inputs_held, nothing_excluded
from ssmdiag.cores import Result, one_thread, share_out
from ssmdiag.errors import SsmdiagError
from ssmdiag.kernel.dense import realise
from ssmdiag.kernel.powers import is_real, lags_of
from ssmdiag.kernel.response import square_of
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

MEMORY_LIMIT = 2 * 2**30
"""Bytes the values may take, by default."""
WORKING_SET = 24 * 2**20
"""Bytes of work on some channels at a time: what a processor's cache holds; ten times that elsewhere."""
EXACT = 1e-9
"""Largest |Σ MF − N| per mode of a channel that passes the self-test."""
DENSE_SPAN = 4096
"""Lags up to which all are computed up to the last one asked for; further ones singly where they are few."""


class MemorySizeError(SsmdiagError):
    """The requested memory function does not fit into the allowed memory."""


@dataclass(frozen=True, eq=False)
class MemoryFunction:
    """MF of every channel at some lags, and what was left out."""

    values: Tensor
    """(channel, lag) float64 in [0, 1]; NaN where the channel is not `sound`."""
    lags: Tensor
    """(lag,) float64 whole numbers."""
    modes: Tensor
    """N, the distinct modes (conjugates included) of each channel, (channel,) int64."""
    total: Tensor
    """Σ_τ MF(τ) as computed, (channel,) float64: the self-test, which is to give N."""
    sound: Tensor
    """Whether `total` is N, and a dense state has a Gramian at all, (channel,) bool."""
    excluded: Excluded


@one_thread()
def memory_function(
    recurrence: Recurrence, lags: Tensor | Sequence[int], *, memory_limit: int = MEMORY_LIMIT
) -> MemoryFunction:
    """Return MF at whole lags up to 2⁴⁰, on the device of the recurrence.

    Modes on or past the stability boundary, NaN, not written to, or equal to others are left out and counted in
    `excluded`. Raises ValueError for lags that are none, MemorySizeError where values exceed `memory_limit` bytes.
    """
    recurrence = realise(recurrence)
    at = lags_of(lags, recurrence.log_eigenvalues.device)
    if recurrence.channels * len(at) * 8 > memory_limit:
        raise MemorySizeError(
            f"{module_name(recurrence.layer)}: the memory function of {recurrence.channels:,} channels × "
            f"{len(at):,} lags takes {recurrence.channels * len(at) * 8 / 2**30:,.1f} GiB, "
            f"{memory_limit / 2**30:,.1f} are allowed.",
            advice="ask for fewer lags (spaced evenly on a log axis they say as much), or for fewer channels.",
        )
    if recurrence.taps is not None:
        held, sound = inputs_held(recurrence)
        values = (at < held[:, None]).double().where(sound[:, None], torch.nan)
        return MemoryFunction(values, at, held, held.double(), sound, Excluded(**nothing_excluded(held)))
    far = at >= max(DENSE_SPAN, 32 * len(at))
    span = int(at[~far].max()) + 1 if bool((~far).any()) else 1
    result = _blank(recurrence, at)

    def fill(chunk: slice) -> None:
        cascade, excluded, converged = cascade_at(recurrence, chunk)
        curve = leading_memory(cascade, span)
        result.values[chunk] = curve.values[:, at.long().clamp(max=span - 1)]
        if bool(far.any()):
            result.values[chunk, far] = square_of(cascade.states_at(at[far])).sum(1)
        result.modes[chunk], result.total[chunk] = cascade.modes, curve.total
        result.sound[chunk] = converged & curve.passes(cascade)
        for name, counts in vars(excluded).items():
            getattr(result.excluded, name)[chunk] = counts

    each_chunk(recurrence, span + int(far.sum()), fill)
    result.values[~result.sound] = torch.nan
    return result


@dataclass(frozen=True, eq=False)
class LeadingMemory:
    """MF of some channels at all lags below a power of two, and A to half that power."""

    values: Tensor
    """MF(τ), τ = 0 … L − 1, (channel, lag) float64."""
    power: Tensor
    """A^(L/2), (channel, state, state)."""

    @property
    def total(self) -> Tensor:
        """Σ MF over all lags, (channel,): summed up to L/2, and from there on ‖A^(L/2)‖² because A Aᴴ + b bᴴ = I."""
        half = self.values.shape[1] // 2
        return self.values[:, :half].sum(1) + square_of(self.power).sum((1, 2))

    def passes(self, cascade: Cascade) -> Tensor:
        """Whether Σ MF is N, and Σ |β|² one, (channel,) bool."""
        modes = cascade.modes.double()
        passed = self.values[:, 0] + square_of(cascade.direct)
        return ((self.total - modes).abs() <= EXACT * modes.clamp(min=1)) & ((passed - 1).abs() <= EXACT)


def leading_memory(cascade: Cascade, lags: int) -> LeadingMemory:
    """Return MF at all lags below the next power of two.

    β_{qS+s+1} = (c A^{qS}) (A^s b) is one matrix product per channel, of rows and columns made by doubling. The sum
    runs from its far end, so that small values keep their digits.
    """
    bits = max(1, (lags - 1).bit_length())
    width, height = 2 ** ((bits + 1) // 2), 2 ** (bits // 2)
    channels, states = cascade.counted.shape
    columns, rows = cascade.entry.new_empty(channels, states, width), cascade.entry.new_empty(channels, height, states)
    columns[..., :1], rows[:, :1] = cascade.entry, cascade.exit
    for bit in range(bits):
        square, done = cascade.square(bit), 2**bit
        if done < width:
            columns[..., done : 2 * done] = cascade.times(square, columns[..., :done])
        else:
            done //= width
            rows[:, done : 2 * done] = rows[:, :done] @ square
    power = cascade.square(bits - 1)
    passed = _sums_to_the_end(square_of(rows @ columns))
    rest = square_of(cascade.times(power, cascade.times(power, cascade.entry))).sum((1, 2))
    # Sums of sums: one after another, thousands of equal roundings would add up.
    later = _sums_to_the_end(torch.cat([passed[:, 1:, 0], rest[:, None]], 1))
    return LeadingMemory((passed + later[..., None]).flatten(1), power)


def _sums_to_the_end(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)


def cascade_at(recurrence: Recurrence, chunk: slice) -> tuple[Cascade, Excluded, Tensor]:
    """Return the cascade of some channels of a realised recurrence, what it leaves out, and which channels have one."""
    spectrum = full_spectrum(recurrence, chunk)
    excluded = spectrum.excluded
    if recurrence.dense is None:
        lost = (spectrum.modes == 0) & (excluded.not_finite + excluded.unstable > 0)
        return cascade_of(spectrum), excluded, ~lost
    dense, usable = dense_channels(recurrence, chunk)
    cascade, converged = dense_cascade(dense)
    converged = converged & usable
    unreached = (~cascade.counted).sum(1).where(converged, 0)
    return cascade, replace(excluded, unreached=unreached, repeated=torch.zeros_like(unreached)), converged


def dense_channels(recurrence: Recurrence, chunk: slice) -> tuple[DenseRealisation, Tensor]:
    """Return some channels of a dense state, and which are finite and stable, (channel,) bool; the others are zero."""
    assert recurrence.dense is not None
    whole = recurrence.dense()
    A, B = whole.state_matrix[chunk], whole.input_matrix[chunk]
    usable = (recurrence.rate[chunk] > 0).all(1) & A.isfinite().flatten(1).all(1) & B.isfinite().all(1)
    A, B = A.where(usable[:, None, None], 0.0), B.where(usable[:, None], 0.0)
    return DenseRealisation(A, B, whole.output_matrix[:, chunk]), usable


def states_of(recurrence: Recurrence) -> int:
    """Return the states of a channel of a realised recurrence, conjugates included."""
    if recurrence.dense is not None:
        return recurrence.dense().input_matrix.shape[1]
    return recurrence.modes * (1 if is_real(recurrence.log_eigenvalues) else 2)


def each_chunk(recurrence: Recurrence, lags: int, work: Callable[[slice], Result]) -> list[Result]:
    """Return the results of the work on all channels, as many at a time as stay in cache for so many lags."""
    device, channels = recurrence.log_eigenvalues.device, recurrence.channels
    room = 1 if device.type == "cpu" else 10
    span = max(1, room * WORKING_SET // (8 * (6 * states_of(recurrence) ** 2 + 3 * lags)))
    return share_out(lambda start: work(slice(start, start + span)), range(0, channels, span), device)


def _blank(recurrence: Recurrence, lags: Tensor) -> MemoryFunction:
    channels, device = recurrence.channels, lags.device
    counts = [torch.zeros(channels, dtype=torch.long, device=device) for _ in range(6)]
    return MemoryFunction(
        values=torch.zeros(channels, len(lags), dtype=torch.float64, device=device),
        lags=lags,
        modes=counts[0],
        total=torch.zeros(channels, dtype=torch.float64, device=device),
        sound=torch.zeros(channels, dtype=torch.bool, device=device),
        excluded=Excluded(*counts[1:]),
    )
