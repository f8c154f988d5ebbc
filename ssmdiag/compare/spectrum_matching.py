"""Two layers' log-eigenvalues as sets, and their kernels: the largest difference, and the reordering behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssmdiag.kernel.kernel import sample_kernel
from ssmdiag.recurrence.modal import Recurrence

WORKING_SET = 2**20
"""Pairs of modes compared at a time."""
MOST_ASSIGNED = 512
"""Most modes of a channel that are assigned one by one where no order fits."""


@dataclass(frozen=True)
class Difference:
    """Where two layers differ most."""

    value: float
    """Relative; infinite where one is zero or not finite and the other is not."""
    channel: int
    """In the first layer; the input where the layer has many, the output first in `a` and `b`'s kernels."""
    at: int
    """Mode of a spectrum, lag of a kernel."""
    a: complex
    """ℓ of the first, or K."""
    b: complex


@dataclass(frozen=True, eq=False)
class SpectrumMatch:
    """How the modes of two layers correspond."""

    difference: Difference | None
    """None where their shapes do not fit."""
    same_shape: bool
    """True: channels correspond one to one, so that kernels can be compared."""
    channel_order: Tensor | None
    """(channel,) channel of the second for each of the first, where they are reordered."""
    reordered_modes: bool
    notes: tuple[str, ...]


def match_spectra(a: Recurrence, b: Recurrence, tolerance: float) -> SpectrumMatch:
    """Return the largest difference of two layers' spectra after aligning modes, channels and repeats.

    What already agrees within `tolerance` is not reordered.
    """
    first, second, notes = _same_pairs(a, b)
    one_to_one = a.channels == b.channels
    if first.shape != second.shape:
        first, second, note = _without_repeats(first, second)
        notes += [note] if note else []
    if first.shape != second.shape:
        sizes = " and ".join(f"{x.channels:,} × {x.modes:,}" for x in (a, b))
        return SpectrumMatch(None, False, None, False, (*notes, f"{sizes} channels and modes: they cannot be compared"))
    error = relative_difference(first, second)
    matched, reordered = second, False
    if float(error.max()) > tolerance:
        matched, reordered = _best_mode_order(first, second, tolerance)
        error = relative_difference(first, matched)
    order = None
    if float(error.max()) > tolerance and len(first) > 1:
        order = _channel_order(first, matched)
        permuted, _ = _best_mode_order(first, matched[order], tolerance)
        apart = relative_difference(first, permuted)
        if float(apart.max()) <= tolerance:
            error, matched = apart, permuted
            moved = int((order != torch.arange(len(order), device=order.device)).sum())
            notes.append(f"channels in another order ({moved:,} moved)")
        else:
            order = None
    if reordered and order is None and float(error.max()) <= tolerance:
        notes.append("modes in another order")
    at = channel, mode = _largest(error)
    difference = Difference(float(error[at]), channel, mode, complex(first[at]), complex(matched[at]))
    return SpectrumMatch(difference, one_to_one, order, reordered and order is None, tuple(notes))


def relative_difference(a: Tensor, b: Tensor) -> Tensor:
    """Return how far two spectra (…, mode) are apart mode by mode: the larger of rates' and frequencies'.

    Rates differ relative to the larger of the two, frequencies modulo 2π and relative to the larger of frequency
    and rate. Equal infinities are equal; what is not a number differs from everything.
    """
    rate = (a.real - b.real).abs() / torch.maximum(a.real.abs(), b.real.abs())
    rate = rate.where(a.real != b.real, 0.0)
    gone = a.real.isinf() & (a.real == b.real)  # λ̄ = 0 has no frequency
    turn = torch.remainder(a.imag - b.imag + math.pi, math.tau) - math.pi
    scale = torch.maximum(torch.maximum(a.imag.abs(), b.imag.abs()), torch.maximum(a.real.abs(), b.real.abs()))
    frequency = (turn.abs() / scale).where((a.imag != b.imag) & ~gone, 0.0)
    return torch.maximum(rate, frequency).nan_to_num(math.inf, math.inf)


def compare_kernels(a: Recurrence, b: Recurrence, lags: Sequence[int], order: Tensor | None) -> Difference | None:
    """Return the lag at which two layers' kernels differ most, relative to the channel's largest |K| at these lags.

    None where a side lacks B or C, or they hold them in different layouts; with many inputs, relative to the largest
    of all. `order` is the channel of `b` for each of `a`.
    """
    if a.layout == "none" or b.layout == "none":
        return None
    if "many inputs" in (a.layout, b.layout):
        return _compare_matrices(a, b, lags) if a.layout == b.layout else None
    first, second = sample_kernel(a, lags), sample_kernel(b, lags)
    if first.shape != second.shape:
        return None
    if order is not None:
        second = second[:, order]
    gap = _gap(first, second)
    peak = first.abs().amax((0, 2), keepdim=True)
    error = (gap / peak).where(gap > 0, 0.0).nan_to_num(math.inf, math.inf)
    at = _, channel, lag = _largest(error)
    return Difference(float(error[at]), channel, int(lags[lag]), complex(first[at]), complex(second[at]))


def _compare_matrices(a: Recurrence, b: Recurrence, lags: Sequence[int]) -> Difference | None:
    """Return the same of two layers with many inputs, one lag in memory at a time."""
    peak, gap = torch.zeros((), dtype=torch.float64, device=a.log_eigenvalues.device), -1.0
    for lag in lags:
        first, second = sample_kernel(a, [lag])[..., 0], sample_kernel(b, [lag])[..., 0]
        if first.shape != second.shape:
            return None
        peak = torch.maximum(peak, first.abs().amax())
        apart = _gap(first, second)
        at = _largest(apart)
        if float(apart[at]) > gap:
            gap = float(apart[at])
            found = at[1], int(lag), complex(first[at]), complex(second[at])
    value = float((gap / peak).nan_to_num(math.inf, math.inf)) if gap > 0 else 0.0
    return Difference(value, *found)


def _largest(values: Tensor) -> tuple[int, ...]:
    """Return the place of the largest value."""
    return tuple(int(index) for index in np.unravel_index(int(values.argmax()), values.shape))


def _gap(first: Tensor, second: Tensor) -> Tensor:
    """Return |a − b|: 0 where both are the same infinity or both are not numbers, infinite where one of them is not."""
    gap = (first - second).abs().nan_to_num(math.inf, math.inf)
    return gap.where((first != second) & ~(first.isnan() & second.isnan()), 0.0)


def _same_pairs(a: Recurrence, b: Recurrence) -> tuple[Tensor, Tensor, list[str]]:
    """Return both spectra with one convention for conjugates: the half with ω ≥ 0, or both halves on both sides."""
    first, second = a.log_eigenvalues, b.log_eigenvalues
    if a.conjugate_pairs and b.conjugate_pairs:
        first, second = (torch.complex(spectrum.real, spectrum.imag.abs()) for spectrum in (first, second))
    if a.conjugate_pairs == b.conjugate_pairs:
        return first, second, []
    first = torch.cat([first, first.conj()], 1) if a.conjugate_pairs else first
    second = torch.cat([second, second.conj()], 1) if b.conjugate_pairs else second
    return first, second, ["one side stores half of each conjugate pair"]


def _without_repeats(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, str]:
    """Return both with the larger reduced to the smaller's shape, where it repeats the same values."""
    if first.numel() < second.numel():
        reduced, note = _reduce(second, first.shape)
        return first, reduced, note and f"the second repeats {note}"
    reduced, note = _reduce(first, second.shape)
    return reduced, second, note and f"the first repeats {note}"


def _reduce(large: Tensor, shape: torch.Size) -> tuple[Tensor, str]:
    said = []
    for axis, what in ((0, "channels"), (1, "modes")):
        size, wanted = large.shape[axis], shape[axis]
        if size == wanted:
            continue
        times, left = divmod(size, wanted) if wanted else (0, 1)
        if left or times < 2:
            return large, ""
        grid = large.movedim(axis, 0)
        for arranged in (grid.reshape(wanted, times, -1), grid.reshape(times, wanted, -1).transpose(0, 1)):
            if bool((arranged == arranged[:, :1]).all()):
                large = arranged[:, 0].movedim(0, axis) if axis == 0 else arranged[:, 0].T
                said.append(f"{what} {times} times")
                break
        else:
            return large, ""
    return large, " and ".join(said)


def _best_mode_order(first: Tensor, second: Tensor, tolerance: float) -> tuple[Tensor, bool]:
    """Return the second spectrum with the modes of each channel in the order that fits the first best."""
    best, moved = second, False
    error = relative_difference(first, best).amax(1)
    for by in ("real", "imag"):
        candidate = torch.empty_like(second).scatter_(1, _order(first, by), second.gather(1, _order(second, by)))
        apart = relative_difference(first, candidate).amax(1)
        better = apart < error
        best, error = candidate.where(better[:, None], best), torch.minimum(apart, error)
        moved = moved or bool(better.any())
    if first.shape[1] > MOST_ASSIGNED:
        return best, moved
    failing = (error > tolerance).nonzero()[:, 0]
    best = best.clone()
    for chunk in failing.split(max(1, WORKING_SET // first.shape[1] ** 2)):
        apart = relative_difference(first[chunk][:, :, None], second[chunk][:, None])
        # Where a mode has no partner at all, no assignment can help.
        for at in (apart.amin(2).amax(1) <= tolerance).nonzero()[:, 0].tolist():
            channel = int(chunk[at])
            best[channel], moved = _assign(apart[at], second[channel]), True
    return best, moved


def _order(spectrum: Tensor, by: str) -> Tensor:
    """Return the order of each channel's modes by one part of ℓ, ties by the other."""
    first, second = (spectrum.real, spectrum.imag) if by == "real" else (spectrum.imag, spectrum.real)
    order = second.argsort(dim=1, stable=True)
    return order.gather(1, first.gather(1, order).argsort(dim=1, stable=True))


def _assign(apart: Tensor, second: Tensor) -> Tensor:
    """Return the second's modes given one by one to the first's, the nearest free pair at a time."""
    apart = apart.clamp(max=1e300)
    result = torch.empty_like(second)
    for _ in range(len(second)):
        row, column = divmod(int(apart.argmin()), apart.shape[1])
        result[row] = second[column]
        apart[row], apart[:, column] = math.inf, math.inf
    return result


def _channel_order(first: Tensor, second: Tensor) -> Tensor:
    """Return the channel of the second that each channel of the first would be, by the order of their mean ℓ."""
    keys = [s.real.abs().log().nan_to_num().mean(1) + math.e * s.imag.abs().mean(1) for s in (first, second)]
    order = torch.empty(len(first), dtype=torch.long, device=first.device)
    order[keys[0].argsort(stable=True)] = keys[1].argsort(stable=True)
    return order
