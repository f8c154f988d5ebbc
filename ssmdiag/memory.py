"""What one layer remembers within a context: its kernel in bins of lags, its horizon, its decay law.

The kernel of a time-invariant layer is exact. A selective layer has none; there the retention stands for
it, the mean over modes of |λ̄|^t at the operating point of the reading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from ssmdiag.channels import group_alike, join_channels
from ssmdiag.decay.decay import NEPER_DB, ChannelDecay, DecayComparison, Law, compare_decay
from ssmdiag.kernel.energy import Horizon, band_energy, horizon
from ssmdiag.kernel.powers import retention
from ssmdiag.spectrum import Quantiles

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence import Recurrence

DEFAULT_CONTEXT = 4096
"""Steps looked over where neither the user nor the checkpoint gives a context."""
BINS_PER_OCTAVE = 4
FLOAT32_FLOOR = 2.0**-48
"""Mean square, relative to the largest bin's, below which a kernel drowns in a model's own float32 arithmetic.

float64 sees the ends of kernels at −3,000 dB, where the slowest mode alone is left; no model does.
"""


@dataclass(frozen=True, eq=False)
class LayerMemory:
    """Memory of some channels of one layer, and of their sum."""

    layer: str
    family: str
    is_kernel: bool
    """False: it is the retention, because B or C is not in the weights."""
    context: int
    edges: Tensor
    """(bin + 1,) lags; bin b holds edges[b] ≤ t < edges[b + 1]."""
    mean_square: Tensor
    """Mean of K² over the lags of each bin, (channel, bin) float64."""
    noise: Tensor
    """What drowns it: its own rounding and that of a model in float32, (channel, bin)."""
    horizon: Horizon
    """Lags to 99 % of the energy, per channel."""
    channels: DecayComparison
    whole: DecayComparison
    """Decay of the channels' summed energy: a layer of exponentials can decay like a power."""


@dataclass(frozen=True)
class LayerDecay:
    """A layer's decay in plain numbers, for reports."""

    counts: dict[str, int]
    """Channels by law, of those looked at: a sample where the layer has many."""
    whole: ChannelDecay
    """The layer as one: its channels' summed energy."""
    sentence: str
    envelope: tuple[tuple[float, float], ...] = ()
    """(lag, dB below the peak) of the layer's rms kernel over the window, for the picture."""
    curves: Mapping[Law, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """The same by each law that was fitted."""


def summarise_memory(memory: LayerMemory) -> tuple[Quantiles | None, LayerDecay]:
    """Return the horizon over channels, in steps, and the decay of a layer.

    A channel whose energy never runs out has an infinite horizon; channels without one are left out.
    """
    lags = memory.horizon.lags
    counts = {law.value: count for law, count in memory.channels.counts().items()}
    envelope, curves = _curves(memory) if bool(memory.whole.fitted[0]) else ((), {})
    decay = LayerDecay(counts, memory.whole.channel(0), memory.whole.describe(0), envelope, curves)
    return Quantiles.of_sorted(lags[~lags.isnan()].sort().values), decay


Curve = tuple[tuple[float, float], ...]


def _curves(memory: LayerMemory) -> tuple[Curve, dict[Law, Curve]]:
    """Return the layer's rms envelope and the laws fitted to it, as (lag, dB below the peak) over the window."""
    first, last = int(memory.whole.first[0]), int(memory.whole.last[0])
    energy = memory.mean_square.nansum(0)
    lag = ((memory.edges[:-1] + memory.edges[1:] - 1) / 2).double()
    inside = (energy > 0) & (memory.edges[:-1] >= first) & (memory.edges[:-1] <= last)
    lag, level = lag[inside], 10 * energy[inside].log10()
    curves: dict[Law, Curve] = {}
    for law, fit in memory.whole.fits.items():
        if law is not Law.FLAT:
            power = fit.exponent[0] * (lag / fit.offset[0].clamp(min=1e-12)).log1p()
            curve = NEPER_DB * (fit.amplitude[0] - power - fit.rate[0] * lag) - level.max()
            curves[law] = tuple(zip(lag.tolist(), curve.tolist(), strict=True))
    return tuple(zip(lag.tolist(), (level - level.max()).tolist(), strict=True)), curves


def profile(recurrence: Recurrence) -> Recurrence:
    """Return the recurrence itself where it has B̄ and C, else its retention."""
    return retention(recurrence) if recurrence.layout == "none" else recurrence


def lag_edges(context: int) -> Tensor:
    """Return edges from lag 0 to the context, every lag at first, then four bins an octave; (bin + 1,) int64."""
    octaves = torch.arange(int(BINS_PER_OCTAVE * 41), dtype=torch.float64) / BINS_PER_OCTAVE
    edges = torch.cat([torch.zeros(1), 2**octaves]).round().long().unique()
    return torch.cat([edges[edges < context], torch.tensor([context])])


def assess_memory(recurrence: Recurrence, context: int) -> LayerMemory:
    """Return horizon and decay laws of a layer's channels and of the layer, down to float32's noise.

    Raises ValueError for a context under 1.
    """
    return assess_memories([recurrence], context)[0]


def assess_memories(recurrences: Sequence[Recurrence], context: int) -> list[LayerMemory]:
    """Return the same of several layers: their laws are found in one go, at a tenth of the cost for small layers.

    Raises ValueError for a context under 1.
    """
    if context < 1:
        raise ValueError(f"the context must be at least one step, got {context}")
    if not recurrences:
        return []
    edges = lag_edges(context)
    profiles = _profiles([profile(recurrence) for recurrence in recurrences], edges)
    # Every layer's channels, then the layer as one: rows of one comparison.
    rows = torch.cat([part for own in profiles for part in (own.mean_square, own.summed)])
    noise = torch.cat([part for own in profiles for part in (own.noise, own.summed_noise)])
    laws = compare_decay(edges, rows, noise, context=context)
    memories, start = [], 0
    for recurrence, own in zip(recurrences, profiles, strict=True):
        stop = start + own.mean_square.shape[0]
        memories.append(
            LayerMemory(
                layer=recurrence.layer,
                family=recurrence.family,
                is_kernel=recurrence.layout != "none",
                context=context,
                edges=edges,
                mean_square=own.mean_square,
                noise=own.noise,
                horizon=own.horizon,
                channels=laws.select(slice(start, stop)),
                whole=laws.select(slice(stop, stop + 1)),
            )
        )
        start = stop + 1
    return memories


@dataclass(frozen=True, eq=False)
class _Profile:
    """Energies of one layer in bins of lags, of its channels and of their sum, with what drowns them."""

    mean_square: Tensor
    noise: Tensor
    summed: Tensor
    summed_noise: Tensor
    horizon: Horizon


def _profiles(sources: Sequence[Recurrence], edges: Tensor) -> list[_Profile]:
    """Return the profile of each layer; layers alike are measured as one."""
    found: dict[int, _Profile] = {}
    for positions in group_alike(sources):
        joined = join_channels([sources[position] for position in positions])
        energy, reach = band_energy(joined, edges), horizon(joined)
        counts = [len(reach.lags)] if len(positions) == 1 else [sources[position].channels for position in positions]
        start = 0
        for position, count in zip(positions, counts, strict=True):
            own = slice(start, start + count)
            start += count
            found[position] = _profile(
                energy.values[own], energy.noise[own], replace(reach, lags=reach.lags[own], status=reach.status[own])
            )
    return [found[position] for position in range(len(sources))]


def _profile(values: Tensor, noise: Tensor, reach: Horizon) -> _Profile:
    sound = values.isfinite().all(1)
    counted = sound if bool(sound.any()) else ~sound  # a sum of nothing would pass for a kernel that is zero
    peak = values.where(sound[:, None], 0.0).amax(1, keepdim=True)
    noise = noise.nan_to_num(0.0) + FLOAT32_FLOOR * peak
    return _Profile(
        mean_square=values,
        noise=noise,
        summed=values[counted].sum(0, keepdim=True),
        summed_noise=noise[counted].sum(0, keepdim=True),
        horizon=reach,
    )
