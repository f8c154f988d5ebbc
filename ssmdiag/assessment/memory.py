"""What one layer remembers within a context: its kernel in bins of lags, its horizon, its decay law.

The kernel of a time-invariant layer is exact. A selective layer has none; there the retention stands for
it, the mean over modes of |λ̄|^t at the operating point of the reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from ssmdiag.assessment.remaining import Remaining, assess_remaining, leave_out
from ssmdiag.cores import one_thread
from ssmdiag.decay.decay import NEPER_DB, STATUSES, ChannelDecay, DecayComparison, DecayStatus, Law, compare_decay
from ssmdiag.decay.energy_curve import EnergyCurve
from ssmdiag.decay.sentence import describe
from ssmdiag.decay.tail import Tail, TailLaw, TailStatus
from ssmdiag.kernel.energy import Energy, Horizon, band_energy, band_energy_and_horizon, horizon
from ssmdiag.kernel.finite import last_tap
from ssmdiag.kernel.powers import MAX_LAG, profile
from ssmdiag.kernel.status import Status, channel_status
from ssmdiag.recurrence.channels import each_layer
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.recurrence.quantiles import Quantiles

Measured = TypeVar("Measured", Energy, Horizon)

DEFAULT_CONTEXT = 4096
"""Context in steps where neither the user nor the checkpoint gives one."""
BINS_PER_OCTAVE = 4
COMPARED_TOGETHER = 512
"""Most rows of a layer (its channels and itself) for fitting its laws together with other layers'."""
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
    """Noise: the kernel's own rounding and that of a model in float32, (channel, bin)."""
    status: Tensor
    """`Status` of each channel's kernel, (channel,) uint8."""
    horizon: Horizon
    """Lags to 99 % of the energy: of these channels, or of all channels of the layer."""
    channels: DecayComparison
    whole: DecayComparison
    """Decay of the channels' summed energy: a layer of exponentials can decay like a power."""
    remaining: Remaining
    """The law of the energy that remains, from their modes."""
    time_invariant: bool = True
    """False: the decay depends on the input, and is read with the gates at rest."""
    taps: int | None = None
    """Lags of a convolution's kernel; None for a recurrence. Its horizon is its last tap that is not 0."""

    @property
    def left_out(self) -> int:
        """Channels left out of the sum: not finite, or cancelled beyond the digits of float64."""
        return int(((self.status == Status.NOT_FINITE) | (self.status == Status.CANCELLED)).sum())


TAIL_WORDS = {TailLaw.EXPONENTIAL: "exp. tail", TailLaw.EXPONENTIALS: "exp. tails", TailLaw.BAND: "exp. band"}
REASONS = {
    DecayStatus.GROWS: "grows",
    DecayStatus.UNBOUNDED: "grows",
    DecayStatus.ZERO: "zero",
    DecayStatus.TINY: "too small",
    DecayStatus.CANCELLED: "cancelled",
    DecayStatus.NOT_FINITE: "not finite",
    DecayStatus.SHORT_MEMORY: "a few steps",
}
"""What a table says of a kernel whose decay has no law."""


@dataclass(frozen=True)
class LayerDecay:
    """A layer's decay in plain numbers, for reports."""

    counts: dict[str, int]
    """Channels by law, of those examined: a sample where the layer has many."""
    whole: ChannelDecay
    """The layer as one: its channels' summed energy."""
    sentence: str
    envelope: tuple[tuple[float, float], ...] = ()
    """(lag, dB below the peak) of the layer's rms kernel over the window, for the picture."""
    curves: Mapping[Law, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """The same by each law that was fitted."""
    tail: Tail | None = None
    """Which rate dominates the remaining energy, by the modes."""
    tail_status: TailStatus = TailStatus.MIXED
    tails: Mapping[str, int] = field(default_factory=dict)
    """Channels by the law of their tail, of those examined."""
    lags: tuple[float | None, ...] = (None, None, None)
    """Lags after which 50, 90 and 99 % of the energy have passed; None where that is not known."""
    heaviness: float | None = None
    """t₉₉/t₅₀ over an exponential's: 1 for an exponential, more for a heavier tail."""
    slowest_rate: float | None = None
    """Rate of the slowest modes that hold a millionth of the energy, nats per step."""
    energy_curve: EnergyCurve | None = None
    """The remaining energy as a sum of a few exponentials, where that describes it."""
    exponents: tuple[tuple[int, int, float], ...] = ()
    """(first lag, last, −d log e/d log t between) over each decade of lags in the window."""

    @property
    def law(self) -> tuple[str, tuple[int, int] | None]:
        """The law that was found, else that of the tail, else what is near or why there is none; and over which lags.

        "Undetermined" says nothing by itself.
        """
        whole, tail, curve = self.whole, self.tail, self.energy_curve
        if whole.law is not Law.UNDETERMINED:
            return whole.law.value, whole.window
        if tail is not None:
            return TAIL_WORDS.get(tail.law, f"{tail.law.value} tail"), (tail.first, tail.last)
        if curve is not None:
            return f"near {len(curve.rates)} exp.", (curve.first, curve.last)
        if whole.residual_db:
            return f"undet., {min(whole.residual_db, key=whole.residual_db.__getitem__).value}", None
        return REASONS.get(whole.status, "none seen"), None


def summarise_memory(memory: LayerMemory) -> tuple[Quantiles | None, LayerDecay]:
    """Return the horizon over channels, in steps, and the decay of a layer.

    A channel whose energy never runs out, grows, or lasts for more than 2⁴⁰ steps has an infinite horizon; one that
    is zero, not finite or cancelled has none.
    """
    status = memory.horizon.status
    lags = memory.horizon.lags.where((status != Status.GROWS) & (status != Status.BEYOND), math.inf)
    counts = {law.value: count for law, count in memory.channels.counts().items()}
    envelope, curves = _curves(memory) if bool(memory.whole.fitted[0]) else ((), {})
    remaining = memory.remaining
    tail, slowest = remaining.whole.row(0), remaining.whole.slowest_rate(0)
    passed = tuple(None if math.isnan(lag) else lag for lag in remaining.passing.lags[0].tolist())
    heaviness = float(remaining.passing.heaviness[0])
    sentence = describe(memory.whole, remaining)
    if memory.taps is not None and bool(lags.isfinite().any()):
        sentence = f"{_describe_end(int(lags[lags.isfinite()].max()), memory.taps)} {sentence}".rstrip()
    if memory.left_out and bool(memory.whole.fitted[0]):
        channels = "1 channel is" if memory.left_out == 1 else f"{memory.left_out:,} channels are"
        sentence += f" {channels} left out: no kernel is known."
    decay = LayerDecay(
        counts,
        memory.whole.channel(0),
        sentence,
        envelope,
        curves,
        tail=tail,
        tail_status=remaining.whole.reason(0),
        tails={law.value: count for law, count in remaining.tails.counts().items()},
        lags=passed,
        heaviness=None if math.isnan(heaviness) else heaviness,
        slowest_rate=slowest,
        energy_curve=remaining.curve,
        exponents=local_exponents(envelope),
    )
    return Quantiles.of(lags), decay


def _describe_end(last: int, taps: int) -> str:
    """Return one sentence on where a convolution's kernel ends."""
    zeros = f", the last {taps - 1 - last:,} of them 0" if last < taps - 1 else ""
    steps = f"{last:,} step{'s' * (last != 1)}"
    return f"A convolution of {taps:,} tap{'s' * (taps != 1)}{zeros}: nothing older than {steps} reaches its output."


Curve = tuple[tuple[float, float], ...]


def _curves(memory: LayerMemory) -> tuple[Curve, dict[Law, Curve]]:
    """Return the layer's rms envelope and the laws fitted to it, as (lag, dB below the peak) over the window."""
    last = int(memory.whole.last[0])
    energy = memory.mean_square[_countable(memory.mean_square, memory.status)].sum(0)
    lag = ((memory.edges[:-1] + memory.edges[1:] - 1) / 2).double()
    inside = (energy > 0) & (memory.edges[:-1] <= last)
    lag, level = lag[inside], 10 * energy[inside].log10()
    curves: dict[Law, Curve] = {}
    for law, fit in memory.whole.fits.items():
        if law is not Law.FLAT:
            power = fit.exponent[0] * (lag / fit.offset[0].clamp(min=1e-12)).log1p()
            curve = NEPER_DB * (fit.amplitude[0] - power - fit.rate[0] * lag) - level.max()
            curves[law] = tuple(zip(lag.tolist(), curve.tolist(), strict=True))
    return tuple(zip(lag.tolist(), (level - level.max()).tolist(), strict=True)), curves


def local_exponents(envelope: Curve) -> tuple[tuple[int, int, float], ...]:
    """Return (first lag, last, −d log e/d log t between) over the decades 1–10, 10–100, … that the envelope covers.

    Each end is the mean in dB of the bins within a factor √2 of it: an oscillation's notch is one of several.
    """
    found, first = [], 1
    while envelope and 10 * first <= envelope[-1][0] * 2**0.5:
        levels = []
        for middle in (first, 10 * first):
            near = [level for lag, level in envelope if middle / 2**0.5 <= lag <= middle * 2**0.5]
            levels += [sum(near) / len(near)] if near else []
        if len(levels) == 2:
            found.append((first, 10 * first, (levels[0] - levels[1]) / 20))
        first *= 10
    return tuple(found)


def lag_edges(context: int) -> Tensor:
    """Return edges from lag 0 to the context, every lag at first, then four bins an octave; (bin + 1,) int64."""
    octaves = torch.arange(int(BINS_PER_OCTAVE * 41), dtype=torch.float64) / BINS_PER_OCTAVE
    edges = torch.cat([torch.zeros(1), 2**octaves]).round().long().unique()
    return torch.cat([edges[edges < context], torch.tensor([context])])


def assess_memory(recurrence: Recurrence, context: int, *, every_passing: bool = False) -> LayerMemory:
    """Return horizon and decay laws of a layer's channels and of the layer, down to float32's noise.

    `every_passing`: also the lags after which 50, 90 and 99 % of each channel's energy have passed.
    Raises ValueError for a context under 1.
    """
    return assess_memories([recurrence], context, every_passing=every_passing)[0]


@one_thread()
def assess_memories(
    recurrences: Sequence[Recurrence],
    context: int,
    *,
    horizons_of: Sequence[Recurrence] | None = None,
    every_passing: bool = False,
    tails: bool = True,
) -> list[LayerMemory]:
    """Return the same of several layers; their laws are fitted together, at a tenth of the cost for small layers.

    Horizons are those of `horizons_of` where it is given: the layers that `recurrences` are some channels of. Without
    `tails` nothing is said of the energy that remains, which takes as long as all the rest.
    Raises ValueError for a context under 1.
    """
    if context < 1:
        raise ValueError(f"the context must be at least one step, got {context}")
    if not recurrences:
        return []
    edges = lag_edges(context).to(recurrences[0].log_eigenvalues.device)
    measured = _measure(recurrences, horizons_of or recurrences, edges, every_passing, tails)
    energies = [own for own, _, _ in measured]
    rows = [_of_whole_bins(own, layer, edges) for own, layer in zip(energies, recurrences, strict=True)]
    laws = _compare(edges, rows, context)
    for recurrence, law in zip(recurrences, laws, strict=True):
        if recurrence.layout == "finite":
            law.mark_finite()
    return [
        LayerMemory(
            layer=recurrence.layer,
            family=recurrence.family,
            is_kernel=recurrence.layout != "none",
            context=context,
            edges=edges,
            mean_square=own.values[:-1],
            noise=own.noise[:-1],
            status=own.status[:-1],
            horizon=reach,
            channels=law.select(slice(0, len(own.status) - 1)),
            whole=law.select(slice(len(own.status) - 1, None)),
            remaining=remaining,
            time_invariant=recurrence.time_invariant,
            taps=None if recurrence.taps is None else recurrence.taps.shape[2],
        )
        for recurrence, (own, reach, remaining), law in zip(recurrences, measured, laws, strict=True)
    ]


def _compare(edges: Tensor, rows: Sequence[Energy], context: int) -> list[DecayComparison]:
    """Return the laws of each layer's rows: its channels and, last, the layer as one.

    Layers of moderate size are rows of one comparison, in which no row depends on the others to the last bit.
    """
    large = [k for k, own in enumerate(rows) if len(own.status) > COMPARED_TOGETHER]
    found: dict[int, DecayComparison] = {}
    for group in ([k for k in range(len(rows)) if k not in large], *([k] for k in large)):
        if group:
            values, noise, status = (
                torch.cat([getattr(rows[k], name) for k in group]) for name in ("values", "noise", "status")
            )
            laws = compare_decay(edges, values, noise, context=context)
            _withhold(laws, status)
            ends = torch.tensor([len(rows[k].status) for k in group]).cumsum(0).tolist()
            found |= {
                k: laws.select(slice(stop - len(rows[k].status), stop)) for k, stop in zip(group, ends, strict=True)
            }
    return [found[k] for k in range(len(rows))]


def _rows(own: Energy) -> Energy:
    """Return a layer's channels, then the layer as one."""
    whole = _summed(own)
    return Energy(*(torch.cat([getattr(own, name), getattr(whole, name)]) for name in ("values", "noise", "status")))


def _of_whole_bins(own: Energy, layer: Recurrence, edges: Tensor) -> Energy:
    """Return the energy without the bin in which a convolution ends: its mean is not that of the taps."""
    if layer.taps is None:
        return own
    ends = (edges[:-1] < layer.modes) & (edges[1:] > layer.modes)
    return replace(own, values=own.values.where(~ends, 0.0))


def _withhold(laws: DecayComparison, status: Tensor) -> None:
    """Replace the law of a kernel that has none by the reason."""
    zero = laws.status == STATUSES.index(DecayStatus.ZERO)
    for where, why in (
        (zero & (status != Status.ZERO), DecayStatus.TINY),
        (status == Status.CANCELLED, DecayStatus.CANCELLED),
        (status == Status.NOT_FINITE, DecayStatus.NOT_FINITE),
        (status == Status.GROWS, DecayStatus.UNBOUNDED),
    ):
        laws.withhold(where, why)


def _measure(
    layers: Sequence[Recurrence], reaching: Sequence[Recurrence], edges: Tensor, every_passing: bool, tails: bool
) -> list[tuple[Energy, Horizon, Remaining]]:
    """Return each layer's energy in bins, of its channels and then of the layer, its horizons, and what remains."""

    def work(k: int) -> tuple[Energy, Horizon, Remaining]:
        source = profile(layers[k])
        if layers[k] is reaching[k]:
            energy, reach = band_energy_and_horizon(source, edges, max_lag=MAX_LAG)
        else:
            energy, reach = band_energy(source, edges), horizon(profile(reaching[k]), max_lag=MAX_LAG)
        if reaching[k].taps is not None:
            reach = _end(reaching[k])
        energy = _above_float32(energy)
        rows, counted = _rows(energy), _countable(energy.values, energy.status)
        if tails:
            remaining = assess_remaining(source, edges, rows, counted, every_channel=every_passing)
        else:
            remaining = leave_out(len(counted), edges)
        return rows, reach, remaining

    return each_layer(layers, work)


def _end(convolution: Recurrence) -> Horizon:
    """Return the lag of the last tap of each channel that is not 0: a kernel that ends is known beyond its 99 %."""
    assert convolution.taps is not None
    status = channel_status(convolution)
    return Horizon(last_tap(convolution.taps).where(status == Status.KNOWN, math.nan), status, 1.0)


def _above_float32(energy: Energy) -> Energy:
    """Return the energy with float32's floor in its noise."""
    peak = energy.values.where(energy.values.isfinite(), 0.0).amax(1, keepdim=True)
    return replace(energy, noise=energy.noise.nan_to_num(0.0) + FLOAT32_FLOOR * peak)


def _countable(values: Tensor, status: Tensor) -> Tensor:
    """Return which channels' energies can be added up, (channel,) bool."""
    known = (status != Status.NOT_FINITE) & (status != Status.CANCELLED) & (status != Status.GROWS)
    return known & values.isfinite().all(1)


def _summed(energy: Energy) -> Energy:
    """Return the channels' energy as one channel's; if one grows, the layer grows."""
    countable = _countable(energy.values, energy.status)
    counted = countable if bool(countable.any()) else ~countable  # an empty sum would look like a zero kernel
    status = energy.status[counted].amin(0, keepdim=True)  # KNOWN is the least
    if bool((energy.status == Status.GROWS).any()):
        status = torch.full_like(status, Status.GROWS)
    return Energy(energy.values[counted].sum(0, keepdim=True), energy.noise[counted].sum(0, keepdim=True), status)
