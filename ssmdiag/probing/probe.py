"""`probe`: what a live model does with its memory on real input, layer by layer, beside what its weights say."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint.live import require_values
from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.families.recognition import recognise
from ssmdiag.guard import guard
from ssmdiag.output.result import Result
from ssmdiag.probing.answers import device_of, in_evaluation, running
from ssmdiag.probing.batches import MASKS, Shown, shown
from ssmdiag.probing.clocks import ObservedLayer, observing
from ssmdiag.probing.digest import RecurrenceDigest, digest_recurrence
from ssmdiag.probing.law import ObservedLaw, judge_law
from ssmdiag.probing.retention import CHANNELS, POSITIONS, HalfLives, RetentionMeter
from ssmdiag.probing.rounded import STATE_CHANNELS, StateError, stepping
from ssmdiag.probing.use import CUTS, Use, measure_use
from ssmdiag.recurrence.quantiles import Quantiles
from ssmdiag.reparam import read_module
from ssmdiag.version import __version__

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence.clock import Clock

USE_TEXTS = 16
"""Texts of which the use of the past is measured, unless another number is given: it costs some 16 passes each."""


@dataclass(frozen=True)
class ObservedMemory:
    """What one layer retained of the texts."""

    half_life: HalfLives
    censored: float
    """Share of half-lives that are longer than the text before their position."""
    reset: float
    """Share of (token, channel) at which the slowest mode loses half of its state or more."""
    hold: float
    """Share of (token, channel) at which it loses a hundredth or less."""
    retention: tuple[tuple[int, float], ...]
    """(lag, mean over channels, modes and positions)."""
    law: ObservedLaw
    channels_sampled: int
    rounded_state: Mapping[str, StateError] | None
    """Error of the layer's output with its state rounded to each of `rounded.FORMATS`; None where it is not known."""
    rounded_reason: str | None
    """Why it is not known."""


@dataclass(frozen=True)
class ProbedLayer:
    """One layer: its memory at rest, by its weights, and on the texts."""

    name: str
    family: str
    title: str
    channels: int | None
    modes: int | None
    nominal: Quantiles | None
    """Half-lives with the gates at rest, in steps; None where the layer's weights cannot be read."""
    nominal_retention: tuple[tuple[int, float], ...]
    """What would be retained at the same lags if the gates were at rest."""
    overwrites: bool
    """Writing replaces what is stored: what was observed then bounds memory from above."""
    observed: ObservedMemory | None
    error: str | None = None
    """Why nothing was observed."""


@dataclass(frozen=True)
class Unobserved:
    """A recurrent layer that was not observed, and why."""

    name: str
    family: str
    why: str


@dataclass(frozen=True, repr=False)
class ProbedMemory(Result):
    """What a model does with its memory on some texts."""

    model: str
    """Name of its class."""
    layers: tuple[ProbedLayer, ...]
    """Layers with a clock; empty for a model without selective layers."""
    without_clock: tuple[Unobserved, ...]
    """Recurrent layers that were not observed."""
    use: Use | None
    """How far back the answers use their past, of any module; None where that is not known."""
    use_reason: str | None
    """Why it is not known."""
    length: int
    """Steps of every text."""
    texts: int
    left_out: tuple[str, ...]
    """Sentences on batches that were too short."""
    digest: RecurrenceDigest | None
    """Of the recurrent weights; None where no recurrence was recognised."""
    device: str
    dtype: str
    seed: int
    ssmdiag_version: str = __version__
    torch_version: str = torch.__version__

    @property
    def tokens(self) -> int:
        return self.texts * self.length


def probe(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    length: int | None = None,
    channels: int = CHANNELS,
    positions: int = POSITIONS,
    cuts: int = CUTS,
    use_texts: int = USE_TEXTS,
    state_channels: int = STATE_CHANNELS,
    seed: int = 0,
    assume: Mapping[str, str] | None = None,
    on_progress: Callable[[str, int, int | None], None] | None = None,
    gather: Callable[[Any], list[Any]] | None = None,
) -> ProbedMemory:
    """Return what a model does with its memory on real input.

    The model is run in eval mode without gradients, and left as it was.

    Parameters
    ----------
    batches
        Each a tensor (batch, time) of token ids or (batch, time, feature), (inputs, targets), or a mapping of the
        model's arguments. They are gone through once; memory does not grow with their number.
    length
        Steps of every text: longer ones are cut, shorter ones left out. By default the length of the first batch.
    channels, positions
        How many channels of a layer and positions of a text are looked at; they are spread evenly.
    cuts, use_texts
        For the use of the past, as in `measure_use`, and on how many texts, the first; without cuts it is not measured.
    state_channels
        Channels of a layer whose state is stepped with rounding, over the first text; none: 0.
    seed
        Decides the resamplings behind the laws, and where texts are cut; no global state is used.
    assume
        Values for options that tensors do not decide.
    on_progress
        Called with what is being measured, what is done of it, and how much there is where that is known.
    gather
        Where every process of several has its part of the batches: of what one found, returns what all found, in the
        same order for all. All then return the same.

    Raises
    ------
    SsmdiagError
        If there is no batch that is long enough, a batch is padded, the model fails or has no values, a layer never
        ran, or memory runs out.
    """
    require_values(type(model).__name__, model.parameters())
    meters: dict[str, RetentionMeter] = {}
    errors: dict[str, str] = {}
    rounded: dict[str, dict[str, StateError]] = {}
    not_stepped: dict[str, str] = {}
    left_out: list[str] = []

    def seen(layer: ObservedLayer, clock: Clock) -> None:
        if layer.name in errors:
            return
        if layer.name not in meters:
            meters[layer.name] = RetentionMeter(
                layer.name, channels=channels, positions=positions, at_rest=_slowest(layer.layer)
            )
        meter = meters[layer.name]
        try:
            with guard(layer.name, "observing its memory"):
                meter.add(clock)
        except LayerError as error:
            errors[layer.name] = error.sentence

    kept, texts = _Kept(use_texts if cuts else 0), 0
    total = len(batches) if isinstance(batches, Sized) else None
    sound = shown(batches, length, left_out)
    first = next(sound, None)
    if first is None:
        wanted = f"at least one batch{f' of {length:,} steps' if length else ''}"
        raise SsmdiagError("there is no text that is long enough.", expected=wanted, details=left_out)
    with (
        in_evaluation(model),
        within_memory(),
        observing(model, seen, assume=assume) as observed,
        stepping(model, observed.layers if state_channels else (), rounded, not_stepped, state_channels),
    ):
        for done, batch in enumerate(chain([first], sound), 1):
            run(model, batch)
            kept.add(batch)
            texts += batch.texts
            if on_progress:
                on_progress("retention", done, total)
    if gather:
        parts = gather((meters, errors, texts, left_out, rounded, not_stepped))
        meters = _merged([part[0] for part in parts])
        errors = {name: why for part in parts for name, why in part[1].items()}
        texts, left_out = sum(part[2] for part in parts), [line for part in parts for line in part[3]]
        rounded, not_stepped = parts[0][4:]  # of the first text
    errors |= {one.name: one.why for one in observed.without_clock}
    layers = tuple(
        _probed(
            layer,
            meters.get(layer.name),
            errors.get(layer.name),
            seed,
            rounded.get(layer.name),
            not_stepped.get(layer.name)
            or ("its scan is not known to ssmdiag" if state_channels else "it was not asked for"),
        )
        for layer in observed.layers
    )
    use, reason = _use(model, kept, cuts, seed, on_progress, gather)
    own = {layer.name for layer in layers}
    return ProbedMemory(
        model=type(model).__name__,
        layers=layers,
        without_clock=tuple(
            Unobserved(one.name, one.family.title, one.why) for one in observed.without_clock if one.name not in own
        ),
        use=use,
        use_reason=reason,
        length=first.length,
        texts=texts,
        left_out=tuple(left_out),
        digest=digest_recurrence(recognise(read_module(model), assume=assume).layers),
        device=str(device_of(model) or "cpu"),
        dtype=dtype_of(model),
        seed=seed,
    )


class _Kept:
    """The first texts, for a second measure: at most so many."""

    def __init__(self, most: int) -> None:
        self.most, self.batches, self.texts = most, list[Tensor](), 0
        self.reason = None if most else "it was not asked for"

    def add(self, batch: Shown) -> None:
        """Keep the inputs of a batch, if there is room."""
        if set(batch.more) - set(MASKS):
            self.reason = f"the model is called with more than its input: {', '.join(set(batch.more) - set(MASKS))}"
        wanted = batch.inputs[: self.most - self.texts]
        if len(wanted):
            self.batches.append(wanted)
            self.texts += len(wanted)


def _merged(meters: Sequence[Mapping[str, RetentionMeter]]) -> dict[str, RetentionMeter]:
    """Return the meter of every layer with what all of several processes saw."""
    found: dict[str, RetentionMeter] = {}
    for one in meters:
        for name, meter in one.items():
            if name in found:
                found[name].merge(meter)
            else:
                found[name] = meter
    return found


def _use(
    model: nn.Module,
    kept: _Kept,
    cuts: int,
    seed: int,
    on_progress: Callable[[str, int, int | None], None] | None,
    gather: Callable[[Any], list[Any]] | None,
) -> tuple[Use | None, str | None]:
    """Return how far back the answers use their past, or why that is not known."""
    met = False

    def meet(own: Any) -> list[Any]:
        """Gather, once whatever happens: other processes wait for it."""
        nonlocal met
        parts = gather(own) if gather and not met else [own]
        met = True
        return parts

    def say(done: int, total: int) -> None:
        if on_progress:
            on_progress("use", done, total)

    if kept.reason is not None:
        meet(kept.reason)
        return None, kept.reason
    try:
        with within_memory():
            return measure_use(model, kept.batches, cuts=cuts, seed=seed, progress=say, gather=meet), None
    except SsmdiagError as error:
        meet(error.sentence)
        return None, error.sentence


@contextmanager
def within_memory() -> Iterator[None]:
    """Raise SsmdiagError where a device's memory runs out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise SsmdiagError(
            f"memory ran out: {str(error).strip().partition(chr(10))[0][:200]}",
            advice="fewer texts in a batch, shorter ones, or a narrower dtype.",
        ) from error


def run(model: nn.Module, batch: Shown) -> Any:
    """Return the answer to a batch, without a cache where the model has one."""
    settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    with running(
        batch.inputs,
        expected="texts that it takes: tokens of its vocabulary or rows of its width, and no more steps than it knows",
        advice="SSMDIAG_DEBUG=1 shows where; a smaller --length may do.",
    ):
        return batch.call(model, device_of(model), **settings)


def dtype_of(model: nn.Module) -> str:
    """Return the dtype of most of a model's weights."""
    sizes: dict[str, int] = {}
    for value in model.parameters():
        sizes[str(value.dtype)] = sizes.get(str(value.dtype), 0) + value.numel()
    return max(sizes, key=sizes.__getitem__, default="torch.float32").removeprefix("torch.")


def _probed(
    found: ObservedLayer,
    meter: RetentionMeter | None,
    error: str | None,
    seed: int,
    rounded: Mapping[str, StateError] | None,
    not_stepped: str,
) -> ProbedLayer:
    """Return what is known of a layer that was observed."""
    family = found.family
    layer = ProbedLayer(
        found.name, family.name, family.title, None, None, None, (), "overwrites" in family.traits, None, error
    )
    try:
        rates = _rates(found.layer)
    except LayerError as unread:
        rates, layer = None, replace(layer, error=error or unread.sentence)
    if rates is not None:
        lives = torch.cat([half_life.flatten() for _, half_life in rates])
        layer = replace(layer, nominal=Quantiles.of_sorted(lives[~lives.isnan()].sort().values))
    if meter is None or error is not None:
        return replace(layer, error=error or "it was not reached")
    retention = meter.result()
    lags = retention.lags.tolist()
    at_rest = _nominal_retention([rate for rate, _ in rates or []], retention.lags)
    return replace(
        layer,
        channels=retention.channels,
        modes=retention.modes,
        nominal_retention=tuple(zip(lags, at_rest, strict=True)) if at_rest else (),
        observed=ObservedMemory(
            retention.half_life,
            retention.censored,
            retention.reset,
            retention.hold,
            tuple(zip(lags, retention.mean.tolist(), strict=True)),
            judge_law(retention, seed=seed),
            len(retention.sampled),
            rounded,
            None if rounded else not_stepped,
        ),
    )


def _slowest(layer: Layer) -> Tensor | None:
    """Return the half-life at rest of each channel's slowest mode, (channel,); None where it cannot be read."""
    try:
        return torch.cat([half_life.nan_to_num().amax(1) for _, half_life in _rates(layer)])
    except LayerError:
        return None


def _rates(layer: Layer) -> list[tuple[Tensor, Tensor]]:
    """Return rate and half-life at rest of each of a layer's recurrences. Raises LayerError."""
    return [(recurrence.rate, recurrence.half_life) for recurrence in layer.read()]


def _nominal_retention(rates: list[Tensor], lags: Tensor) -> list[float]:
    """Return the mean over modes of exp(−r lag)."""
    whole = torch.cat([rate.flatten() for rate in rates]) if rates else torch.zeros(0)
    whole = whole[~whole.isnan()]
    return [float(torch.exp(-whole * lag).mean()) for lag in lags.tolist()] if whole.numel() else []
