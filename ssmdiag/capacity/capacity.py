"""What a layer's spectrum can remember: how far back, how accurately, and how much of it survives a rounded state.

| word | what it is (Guan et al., 2025, arXiv 2510.00563) |
|---|---|
| length | the largest lag τ with MF(τ) ≥ ½, or ≥ 0.1 |
| held | the fewest lags L with Σ_{τ<L} MF(τ) ≥ ½ N, or ≥ 0.9 N: a length without a threshold on MF |
| accuracy | the mean of MF over the lags up to the length at ½ |
| capacity | Σ MF over the lags of the context |
| effective modes | tr((G + N)⁻¹ G): how many of N the spectrum really uses, with the state rounded at every step |

MF never rises and sums to N, so that no length at ½ exceeds 2N steps: length costs accuracy. Length, accuracy and
capacity are those of exact arithmetic; `rounded_half` and `rounded_tenth` are those of the model's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from ssmdiag.capacity.cascade import Cascade
from ssmdiag.capacity.full_spectrum import REASONS, Excluded
from ssmdiag.capacity.noise import complete, noisy_states
from ssmdiag.capacity.reconstruction import LeadingMemory, cascade_at, each_chunk, leading_memory, states_of
from ssmdiag.capacity.rounding import STATE_PRECISION, Rounding
from ssmdiag.capacity.window import inputs_held, nothing_excluded, surviving_inputs, window_lags
from ssmdiag.cores import one_thread
from ssmdiag.families.initial_spectra import initial_spectra
from ssmdiag.kernel.dense import realise
from ssmdiag.kernel.response import square_of
from ssmdiag.output.result import Result
from ssmdiag.printable import plural
from ssmdiag.recurrence.channels import each_layer, sample_channels
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.recurrence.quantiles import Quantiles

HALF, TENTH = 0.5, 0.1
NINE_TENTHS = 0.9
LAGS_PER_OCTAVE = 4
BOUND_FROM = 0.1
"""Share of swallowed numbers from which more modes may survive than reported: in the 26 of 190 really rounded runs that
have it, up to 22 % more, and nowhere 0.3 modes fewer."""
WORK = 2**26
"""Most stored modes cubed times channels: 4 channels of 256 modes, a second."""
FEWEST_CHANNELS = 4
_MEASURES = (
    "length_half",
    "length_tenth",
    "accuracy",
    "capacity",
    "held_half",
    "held_nine_tenths",
    "rounded_half",
    "rounded_tenth",
    "effective_modes",
)
_STATE_OF = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, eq=False, repr=False)
class LayerCapacity(Result):
    """Memory of every channel of one layer. Tensors are (channel,) float64, NaN where there is no value."""

    layer: str
    family: str
    context: int
    state_dtype: str
    """Format of the state that effective modes are counted for, a key of `surviving`."""
    modes: Tensor
    """N: distinct modes with their conjugates, int64; Σ MF over all lags."""
    length_half: Tensor
    """Largest lag with MF ≥ ½; NaN where MF is lower even for the present input."""
    length_tenth: Tensor
    accuracy: Tensor
    """Mean MF over lags 0 … length_half; NaN where there is no such length."""
    capacity: Tensor
    """Σ MF(τ) over 0 ≤ τ < context."""
    held_half: Tensor
    """Fewest lags that hold half of the capacity over all lags; inf past 2⁵²."""
    held_nine_tenths: Tensor
    rounded_half: Tensor
    """`length_half` of the state rounded to `state_dtype`."""
    rounded_tenth: Tensor
    swallowed: Tensor
    """Share of the numbers of a state whose steps rounding to `state_dtype` swallows; NaN without a state."""
    rounding: Rounding
    """What the rounded quantities assume ..."""
    gated: bool
    """... and whether the input decides B, so that B is not in the weights."""
    surviving: dict[str, Tensor]
    """tr((G + N)⁻¹ G) over all lags, by format of the state."""
    excluded: Excluded
    sound: Tensor
    """Whether Σ MF = N holds, bool; where not, everything else is NaN."""
    lags: Tensor
    """(lag,) float64: 0, then evenly spaced on a log axis, in the end powers of two, all below the context."""
    memory: Tensor
    """Mean of MF over the sound channels at these lags, (lag,) float64."""
    window: bool = False
    """Whether it is that of a convolution: a window of inputs, not a spectrum of modes."""

    @property
    def effective_modes(self) -> Tensor:
        """Modes that survive a state of `state_dtype`, (channel,)."""
        return self.surviving[self.state_dtype]


@dataclass(frozen=True)
class CapacitySummary:
    """A layer's memory in plain numbers, over its channels, for reports."""

    channels: int
    context: int
    state_dtype: str
    modes: Quantiles | None
    length_half: Quantiles | None
    """Over the channels that have such a lag; None if none has."""
    length_tenth: Quantiles | None
    accuracy: Quantiles | None
    capacity: Quantiles | None
    held_half: Quantiles | None
    held_nine_tenths: Quantiles | None
    rounded_half: Quantiles | None
    rounded_tenth: Quantiles | None
    effective_modes: Quantiles | None
    surviving: dict[str, Quantiles | None]
    without_half: int
    """Sound channels that rebuild not even the present input to MF ≥ ½."""
    without_tenth: int
    swallowed: float | None
    """Mean share of the numbers of a state whose steps rounding swallows; None without a state."""
    unknown: int
    """Channels without a result: only NaN and growing modes, or a failed self-test."""
    excluded: dict[str, int]
    """Stored modes left out, by reason."""
    curve: tuple[tuple[float, float], ...]
    """(lag, mean MF)."""
    sentence: str
    assumes: str
    """What the rounded quantities assume, in words."""

    @property
    def is_bound(self) -> bool:
        """Whether so many steps are swallowed that effective modes are a bound from below."""
        return self.swallowed is not None and self.swallowed >= BOUND_FROM


def assess_capacity(
    recurrence: Recurrence, context: int, *, state_dtype: str | None = None, rounding: Rounding | None = None
) -> LayerCapacity:
    """Return length, accuracy, capacity and effective modes of every channel.

    `context` in steps. `state_dtype` is a key of `STATE_PRECISION`; by default the format of the stored weights, which
    generation uses for its states too, or float32 where that is neither bf16 nor fp16. Raises ValueError for a context
    under 1 or an unknown format.
    """
    return assess_capacities([recurrence], context, state_dtype=state_dtype, rounding=rounding)[0]


@one_thread()
def assess_capacities(
    recurrences: Sequence[Recurrence],
    context: int,
    *,
    state_dtype: str | None = None,
    rounding: Rounding | None = None,
) -> list[LayerCapacity]:
    """Return the same of several layers, each by itself.

    Raises ValueError for a context under 1 or an unknown format.
    """
    if context < 1:
        raise ValueError(f"the context must be at least one step, got {context}")
    if state_dtype is not None and state_dtype not in STATE_PRECISION:
        raise ValueError(f"state_dtype is one of {', '.join(STATE_PRECISION)}, not {state_dtype!r}")

    def work(position: int) -> LayerCapacity:
        layer = recurrences[position]
        return _assess(realise(layer), context, state_dtype or state_format(layer), rounding or Rounding())

    return each_layer(recurrences, work)


def _assess(recurrence: Recurrence, context: int, state_dtype: str, rounding: Rounding) -> LayerCapacity:
    """Return the capacities of a realised layer."""
    if recurrence.taps is not None:
        return _assess_window(recurrence, context, state_dtype, rounding)
    rounding = complete(rounding, recurrence)
    channels, device = recurrence.channels, recurrence.log_eigenvalues.device
    # MF is under 0.1 past ten times the modes, conjugates included.
    leading_lags = 2 ** (int(states_of(recurrence) / TENTH) - 1).bit_length()
    lags = _lags(context, leading_lags, device)
    values = torch.full((9, channels), torch.nan, dtype=torch.float64, device=device)
    surviving = {name: torch.full_like(values[0], torch.nan) for name in STATE_PRECISION}
    counts = torch.zeros(1 + len(REASONS), channels, dtype=torch.long, device=device)
    sound = torch.zeros(channels, dtype=torch.bool, device=device)

    def assess(chunk: slice) -> Tensor:
        """Fill in some channels; return the sum of their MF, (lag,)."""
        cascade, excluded, known = cascade_at(recurrence, chunk)
        leading = leading_memory(cascade, leading_lags)
        sound[chunk] = good = known & leading.passes(cascade)
        counts[0, chunk] = cascade.modes
        counts[1:, chunk] = torch.stack([getattr(excluded, reason) for reason in REASONS])
        values[:4, chunk] = _measure(cascade, leading, context).where(good, torch.nan)
        values[4:6, chunk] = _held(cascade, leading).where(good & (cascade.modes > 0), torch.nan)
        states = noisy_states(recurrence, chunk, rounding)
        for name, shares in zip(STATE_PRECISION, states.survivors_of(list(STATE_PRECISION)), strict=True):
            surviving[name][chunk] = shares.where(good, torch.nan)
        lengths = states.lengths(states.rounded(state_dtype), (HALF, TENTH))
        values[6:8, chunk] = lengths.where(good & (lengths >= 0), torch.nan)
        values[8, chunk] = states.swallowed(state_dtype).where(good, torch.nan)
        return _curve(cascade, leading, lags).where(good[:, None], 0.0).sum(0)

    total = torch.stack(each_chunk(recurrence, leading_lags, assess)).sum(0)
    return LayerCapacity(
        layer=recurrence.layer,
        family=recurrence.family,
        context=context,
        state_dtype=state_dtype,
        modes=counts[0],
        length_half=values[0],
        length_tenth=values[1],
        accuracy=values[2],
        capacity=values[3],
        held_half=values[4],
        held_nine_tenths=values[5],
        rounded_half=values[6],
        rounded_tenth=values[7],
        swallowed=values[8],
        rounding=rounding,
        gated=recurrence.dense is None and recurrence.input_matrix is None,
        surviving=surviving,
        excluded=Excluded(*counts[1:]),
        sound=sound,
        lags=lags,
        memory=total / sound.sum(),
    )


def _assess_window(convolution: Recurrence, context: int, state_dtype: str, rounding: Rounding) -> LayerCapacity:
    """Return the capacities of a convolution, whose state is the inputs that its taps reach."""
    held, sound = inputs_held(convolution)
    count = held.double().where(sound, torch.nan)
    length = (count - 1).where(count > 0, torch.nan)
    lags = window_lags(held[sound], context)
    return LayerCapacity(
        layer=convolution.layer,
        family=convolution.family,
        context=context,
        state_dtype=state_dtype,
        modes=held,
        length_half=length,
        length_tenth=length,
        accuracy=torch.ones_like(length).where(~length.isnan(), torch.nan),
        capacity=count.clamp(max=context),
        held_half=(HALF * count).ceil(),
        held_nine_tenths=(NINE_TENTHS * count).ceil(),
        rounded_half=length,
        rounded_tenth=length,
        swallowed=torch.full_like(length, torch.nan),
        rounding=rounding,
        gated=False,
        surviving=surviving_inputs(count, rounding),
        excluded=Excluded(**nothing_excluded(held)),
        sound=sound,
        lags=lags,
        memory=(lags < held[sound][:, None]).double().sum(0) / sound.sum(),
        window=True,
    )


def state_format(recurrence: Recurrence) -> str:
    """Return the format of the states of a model that generates, by its weights: bf16, fp16 or float32."""
    return _STATE_OF.get(recurrence.dtype, "float32")


def initial_capacities(
    recurrence: Recurrence, context: int, *, state_dtype: str | None = None, rounding: Rounding | None = None
) -> dict[str, LayerCapacity]:
    """Return the same of the initialisations of the layer's family with as many modes, by name; {} where none is known.

    The comparison shows whether training lengthened the memory.
    """
    return dict(_initial(recurrence.family, recurrence.modes, context, state_dtype, rounding))


@cache
def _initial(
    family: str, modes: int, context: int, state_dtype: str | None, rounding: Rounding | None
) -> tuple[tuple[str, LayerCapacity], ...]:
    found = []
    for initial in initial_spectra(family, modes):
        some = sample_channels(initial.recurrence, affordable_channels(modes, initial.recurrence.channels))
        assumed = rounding and complete(replace(rounding, largest=None), initial.recurrence)
        own = assess_capacity(some, context, state_dtype=state_dtype, rounding=assumed)
        found.append((initial.name, own))
    return tuple(found)


def affordable_channels(modes: int, most: int, work: int = WORK) -> int:
    """Return how many of a layer's channels to compute, up to `most`: one costs the cube of its modes."""
    return min(most, max(FEWEST_CHANNELS, work // modes**3))


def summarise_capacity(capacity: LayerCapacity) -> CapacitySummary:
    """Return quantiles over channels, the counts of what is missing, and a sentence."""
    sound = int(capacity.sound.sum())
    modes = capacity.modes.double().where(capacity.sound, torch.nan)
    summary = {name: Quantiles.of(getattr(capacity, name)) for name in _MEASURES}
    return CapacitySummary(
        channels=len(capacity.sound),
        context=capacity.context,
        state_dtype=capacity.state_dtype,
        modes=Quantiles.of(modes),
        surviving={name: Quantiles.of(values) for name, values in capacity.surviving.items()},
        without_half=sound - int((~capacity.length_half.isnan()).sum()),
        without_tenth=sound - int((~capacity.length_tenth.isnan()).sum()),
        swallowed=_mean(capacity.swallowed),
        unknown=len(capacity.sound) - sound,
        excluded=capacity.excluded.totals(),
        curve=tuple(zip(capacity.lags.tolist(), capacity.memory.tolist(), strict=True)) if sound else (),
        sentence=_describe(capacity),
        assumes=capacity.rounding.sentence(capacity.state_dtype, gated=capacity.gated),
        **summary,
    )


def _lags(context: int, leading: int, device: torch.device) -> Tensor:
    """Return 0, whole lags evenly spaced on a log axis up to `leading`, then powers of two, all below the context."""
    octaves = torch.arange(LAGS_PER_OCTAVE * leading.bit_length(), dtype=torch.float64, device=device)
    near = (2 ** (octaves / LAGS_PER_OCTAVE)).round().unique()
    far = 2 ** torch.arange(max(leading, context).bit_length(), dtype=torch.float64, device=device)
    lags = torch.cat([near.new_zeros(1), near[near < leading], far[far >= leading]])
    return lags[lags < context]


def _measure(cascade: Cascade, leading: LeadingMemory, context: int) -> Tensor:
    """Return length at ½ and at 0.1, accuracy and capacity, (4, channel)."""
    values = leading.values
    half, tenth = ((values >= share).sum(1) - 1 for share in (HALF, TENTH))  # MF never rises
    sums = values.cumsum(1)
    accuracy = sums.gather(1, half.clamp(min=0)[:, None])[:, 0] / (half + 1)
    if context <= values.shape[1]:
        capacity = sums[:, context - 1]
    else:
        capacity = (cascade.modes - square_of(cascade.power(context)).sum((1, 2))).clamp(min=0)
    result = torch.stack([half.double(), tenth.double(), accuracy, capacity])
    result[:3] = result[:3].where(torch.stack([half, tenth, half]) >= 0, torch.nan)
    return result


def _held(cascade: Cascade, leading: LeadingMemory) -> Tensor:
    """Return the fewest lags that hold half and nine tenths of the capacity, (2, channel)."""
    shares = (HALF, NINE_TENTHS)
    wanted = leading.values.new_tensor(shares)[:, None] * cascade.modes
    short = leading.values.cumsum(1) < wanted[..., None]
    near, far = short.sum(2) + 1.0, short.all(2)
    if not bool(far.any()):
        return near
    return cascade.lags_holding(shares, leading.values.shape[1].bit_length() - 1).where(far, near)


def _curve(cascade: Cascade, leading: LeadingMemory, lags: Tensor) -> Tensor:
    """Return MF at the lags of `_lags`, (channel, lag)."""
    known = leading.values.shape[1]
    values = [leading.values[:, lags[lags < known].long()]]
    for lag in lags[lags >= known].long().tolist():
        states = cascade.times(cascade.square(lag.bit_length() - 1), cascade.entry)
        values.append(square_of(states).sum(1))
    return torch.cat(values, 1)


def _mean(values: Tensor) -> float | None:
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def _describe(capacity: LayerCapacity) -> str:
    """Return what the layer remembers as a sentence."""
    if (survive := Quantiles.of(capacity.effective_modes)) is None:
        return "No channel's capacity is known: its modes are NaN, growing, or beyond float64."
    if capacity.window:
        last = int(capacity.modes[capacity.sound].max())
        what = f"its last {last:,} inputs themselves" if last > 1 else "no input but the present one"
        return f"The convolution sees {what}: each can be rebuilt exactly, and none older."
    modes = float(capacity.modes[capacity.sound].double().quantile(0.5, interpolation="nearest"))
    half, accuracy, rounded = map(Quantiles.of, (capacity.length_half, capacity.accuracy, capacity.rounded_half))
    swallowed = _mean(capacity.swallowed)
    least = "at least " if swallowed is not None and swallowed >= BOUND_FROM else ""
    spent = (
        f"{least}{survive.median:.3g} of {plural(f'{modes:.0f}', 'mode')} survive rounding the state to "
        f"{capacity.state_dtype} "
        "under white input"
    )
    if not modes:
        return "Its capacity is not known: every mode is on the stability boundary or has no finite memory function."
    near, most = map(Quantiles.of, (capacity.held_half, capacity.held_nine_tenths))
    if near and most:
        lags = f"{plural(f'{near.median:,.0f}', 'lag')}, nine tenths within {most.median:,.0f}"
        spent = f"half of the capacity lies within {lags}; {spent}"
    if half is None or accuracy is None:
        return f"No channel rebuilds even its present input to one half; {spent}."
    able, channels = int((~capacity.length_half.isnan()).sum()), len(capacity.sound)
    shipped = f"; {rounded.max:,.0f} at most in {capacity.state_dtype}" if rounded else ""
    return (
        f"{able:,} of {plural(channels, 'channel')} rebuild{'s' * (channels == 1)} inputs to one half or better, "
        f"{plural(f'{half.median:,.0f}', 'step')} back "
        f"({half.max:,.0f} at most{shipped}) and to {accuracy.median:.2f} on average; {spent}."
    )
