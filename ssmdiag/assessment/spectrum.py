"""One layer's spectrum in numbers: quantiles, margin, histogram, a sample for the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ssmdiag.assessment.memory import LayerDecay
from ssmdiag.capacity.capacity import CapacitySummary
from ssmdiag.recurrence.modal import Assumption, Recurrence
from ssmdiag.recurrence.quantiles import Quantiles

BINS_PER_DECADE = 4
FIRST_DECADE, LAST_DECADE = -1, 8
SAMPLED_EIGENVALUES = 512


@dataclass(frozen=True)
class LayerDiagnosis:
    """One layer's spectrum in numbers. Steps are time steps (tokens) of the model."""

    name: str
    """Dotted path in the checkpoint, with the branch if the layer has several."""
    family: str
    title: str
    spelling: str
    time_invariant: bool
    operating_point: str | None
    channels: int
    modes: int
    dtype: str
    rate: Quantiles | None
    """Nats per step."""
    half_life: Quantiles | None
    """Steps."""
    time_constant: Quantiles | None
    """Steps."""
    spectral_radius: float | None
    margin: float | None
    """Smallest 1 − |λ̄|; negative where a mode grows."""
    nonfinite: int
    """Modes that are NaN or infinite, left out of everything else."""
    unstable: int
    """Modes with |λ̄| > 1; none of a linearised recurrence, which saturates."""
    marginal: int
    """Modes with |λ̄| = 1 exactly."""
    histogram: tuple[int, ...]
    """Modes per quarter decade of the time constant from 0.1 to 10⁸ steps; the end bins include everything beyond."""
    eigenvalues: tuple[tuple[float, float], ...]
    """(rate, frequency) of a sample of modes, slowest first, for the picture."""
    assumptions: tuple[Assumption, ...]
    notes: tuple[str, ...]
    tensors: tuple[str, ...]
    horizon: Quantiles | None = None
    """Steps to 99 % of the energy, over channels; None where it was not requested."""
    every_horizon: bool = False
    """Whether those are all of its channels."""
    decay: LayerDecay | None = None
    """Laws of the channels and of the layer; None where they were not requested."""
    capacity: CapacitySummary | None = None
    """How far back and how accurately inputs can be rebuilt; None where it was not requested."""
    taps: int | None = None
    """Lags of a convolution's kernel, which has no eigenvalues; None for a recurrence."""


def summarise(recurrence: Recurrence, title: str) -> LayerDiagnosis:
    """Return the numbers of one recurrence; modes that are not finite are counted and left out."""
    if recurrence.taps is not None:
        return _convolution(recurrence, recurrence.taps, title)
    ell = recurrence.log_eigenvalues.flatten()
    rate, frequency = -ell.real, ell.imag
    finite = ~(rate.isnan() | frequency.isnan() | (rate == -math.inf))
    defects = _defects(recurrence)
    if defects:
        # λ̄ = 0 is a rate of +inf, a mode that forgets at once; if an infinite weight causes it, the mode is broken.
        finite &= rate != math.inf
    rate, frequency = rate[finite], frequency[finite]
    # One sort serves all: the slowest mode has the smallest rate and the longest time constant.
    order = rate.argsort()
    rate, frequency = rate[order], frequency[order]
    time_constant = (1 / rate).where(rate > 0, math.inf)
    slowest = float(rate[0]) if rate.numel() else None
    return LayerDiagnosis(
        name=recurrence.layer,
        family=recurrence.family,
        title=title,
        spelling=recurrence.spelling,
        time_invariant=recurrence.time_invariant,
        operating_point=recurrence.operating_point,
        channels=recurrence.channels,
        modes=recurrence.modes,
        dtype=recurrence.dtype,
        rate=Quantiles.of_sorted(rate),
        half_life=Quantiles.of_sorted(math.log(2) * time_constant.flip(0)),
        time_constant=Quantiles.of_sorted(time_constant.flip(0)),
        spectral_radius=None if slowest is None else math.exp(min(-slowest, 700.0)),
        margin=None if slowest is None else -math.expm1(min(-slowest, 700.0)),
        nonfinite=int((~finite).sum()),
        unstable=0 if recurrence.linearised else int((rate < 0).sum()),
        marginal=int((rate == 0).sum()),
        histogram=_histogram(time_constant),
        eigenvalues=_sample(rate, frequency),
        assumptions=recurrence.assumptions,
        notes=recurrence.notes + defects,
        tensors=recurrence.tensors,
    )


def _convolution(recurrence: Recurrence, taps: torch.Tensor, title: str) -> LayerDiagnosis:
    """Return the numbers of a convolution: those of a spectrum are absent."""
    return LayerDiagnosis(
        name=recurrence.layer,
        family=recurrence.family,
        title=title,
        spelling=recurrence.spelling,
        time_invariant=recurrence.time_invariant,
        operating_point=recurrence.operating_point,
        channels=recurrence.channels,
        modes=recurrence.modes,
        dtype=recurrence.dtype,
        rate=None,
        half_life=None,
        time_constant=None,
        spectral_radius=None,
        margin=None,
        nonfinite=int((~taps.isfinite()).any(0).sum()),
        unstable=0,
        marginal=0,
        histogram=(0,) * ((LAST_DECADE - FIRST_DECADE) * BINS_PER_DECADE),
        eigenvalues=(),
        assumptions=recurrence.assumptions,
        notes=recurrence.notes + _defects(recurrence),
        tensors=recurrence.tensors,
        taps=taps.shape[2],
    )


def _defects(recurrence: Recurrence) -> tuple[str, ...]:
    """Return a sentence for every weight, and for B̄ and C, that holds NaN or infinity."""
    parts: list[tuple[str, torch.Tensor | None]] = [(weight.name, weight.values) for weight in recurrence.weights]
    parts += [("the input matrix B", recurrence.input_matrix), ("the output matrix C", recurrence.output_matrix)]
    parts += [("the convolution", recurrence.taps)]
    broken = [(name, values) for name, values in parts if values is not None and not values.isfinite().all()]
    counted = [(name, int((~values.isfinite()).sum()), values.numel()) for name, values in dict(broken).items()]
    return tuple(
        f"{name}: {bad:,} of {of:,} values {'is' if bad == 1 else 'are'} NaN or infinite" for name, bad, of in counted
    )


def _histogram(time_constant: torch.Tensor) -> tuple[int, ...]:
    bins = (LAST_DECADE - FIRST_DECADE) * BINS_PER_DECADE
    position = ((time_constant.log10() - FIRST_DECADE) * BINS_PER_DECADE).floor().clamp(0, bins - 1)
    return tuple(torch.bincount(position.long(), minlength=bins).tolist())


def _sample(rate: torch.Tensor, frequency: torch.Tensor) -> tuple[tuple[float, float], ...]:
    """Return at most `SAMPLED_EIGENVALUES` modes spread evenly over the order of their rates."""
    count = min(rate.numel(), SAMPLED_EIGENVALUES)
    picks = torch.linspace(0, max(rate.numel() - 1, 0), count, dtype=torch.float64).round().long().to(rate.device)
    return tuple(zip(rate[picks].tolist(), frequency[picks].tolist(), strict=True))
