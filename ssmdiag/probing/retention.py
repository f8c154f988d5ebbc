"""How much of a state is left after a lag on real input, and after how many steps half of it is gone.

With T(t) = Σ_{s<t} Δ(s) in float64, what the state held before token s is worth exp(−r (T(t) − T(s))) before token t:

    R(lag) = E_t exp(−r (T(t) − T(t − lag))),     half-life at t: the lag at which r (T(t) − T(t − lag)) = ln 2

All lags are read at the same positions t, those of the second half of a text: each has a past of half the text. T never
falls, so a half-life is found by a search; nothing of size time × time is formed. Texts are added one after another and
only sums stay, so that memory grows with neither their length nor their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssmdiag.assessment.memory import lag_edges
from ssmdiag.errors import LayerError
from ssmdiag.printable import module_name
from ssmdiag.recurrence.clock import Clock

CHANNELS = 64
POSITIONS = 128
RESET = math.log(2)
"""Nats of a channel's slowest mode that a token which resets it lets pass, or more: half of the state, or all of it."""
HOLD = -math.log(0.99)
"""Nats at most that a token which holds it lets pass: a hundredth of the state."""
BLOCKS = 8
"""Blocks of neighbouring positions of a text, whose means are kept apart: by them the spread of a mean is known."""
MOST_BLOCKS = 64
"""Blocks kept; those of further texts are added to them in turn."""
MOST_VALUES = 2**18
"""Half-lives kept of a layer; of more, those at every second position, every fourth …"""
FORGOTTEN = 2000.0
"""Nats of the slowest mode past which nothing is left in float64."""
FASTEST = 1e30
"""Rate past which a mode forgets at once; an infinite one times no time at all would be NaN."""


@dataclass(frozen=True)
class HalfLives:
    """Quantiles of the half-life in steps; every sampled channel, position and mode counts alike."""

    min: float
    p05: float
    median: float
    p95: float
    p99: float
    max: float
    at_least: tuple[str, ...] = ()
    """Names of those that are bounds from below: some half-lives were longer than the text before their position."""


QUANTILES = {"min": 0.0, "p05": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, eq=False)
class Retention:
    """What one layer retained of the texts it was shown."""

    lags: Tensor
    """(lag,) int64, ascending from 0 to half the length of a text."""
    blocks: Tensor
    """Mean over modes and the positions of each block, (block, channel, lag) float64."""
    positions: Tensor
    """How many positions each block has, (block,) float64."""
    half_life: HalfLives
    censored: float
    """Share of half-lives that are longer than the text before their position."""
    reset: float
    """Share of (token, channel) at which the channel's slowest mode loses half of its state or more."""
    hold: float
    """Share of (token, channel) at which it loses a hundredth or less."""
    sampled: Tensor
    """Numbers of the channels, (channel,); reset and hold are of all."""
    channels: int
    modes: int
    tokens: int

    @property
    def by_channel(self) -> Tensor:
        """R(lag) of each sampled channel, mean over positions and modes, (channel, lag)."""
        return (self.blocks * self.positions[:, None, None]).sum(0) / self.positions.sum()

    @property
    def mean(self) -> Tensor:
        """R(lag) of the layer, (lag,)."""
        return self.by_channel.mean(0)


class RetentionMeter:
    """Adds up what one layer retains, text by text.

    `at_rest`: half-life of each channel's slowest mode with the gates at rest, (channel,), by which channels are
    sampled; by default the order of their rates.
    """

    def __init__(
        self, name: str, *, channels: int = CHANNELS, positions: int = POSITIONS, at_rest: Tensor | None = None
    ) -> None:
        self.name = name
        self.title = module_name(name)
        self._at_rest = at_rest
        self._channels, self._positions = channels, positions
        self._length: int | None = None
        self._sequences = self._tokens = self._seen_rows = 0
        self._every = 1
        self._reset = self._hold = self._counted = 0
        self._kept: list[Tensor] = []
        self._censored_kept: list[Tensor] = []
        self._censored = self._half_lives = 0

    def add(self, clock: Clock) -> None:
        """Add the texts of a batch.

        Raises LayerError where Δ is NaN or negative, or the texts are not as long as those before.
        """
        step, rate = clock.step.detach(), clock.rate.detach().double().clamp(max=FASTEST)
        step = step.to(torch.promote_types(step.dtype, torch.float32))
        self._require_sound(step, rate)
        if self._length is None:
            self._begin(step, rate)
        elif step.shape[1] != self._length:
            raise LayerError(
                f"{self.title}: a text of {step.shape[1]:,} steps follows texts of {self._length:,}.",
                expected="texts of one length: every lag is read at the same positions",
            )
        self._count_shares(step, rate.amin(1))
        rate = rate[self._sampled]
        slowest = rate.where(rate > 0, math.inf).amin(1)
        total = cumulate(step[..., self._sampled].double().clamp(max=FORGOTTEN / slowest))
        self._add_retention(total, rate)
        self._add_half_lives(total, rate)
        self._sequences += len(step)
        self._tokens += step.shape[0] * step.shape[1]

    def merge(self, other: RetentionMeter) -> None:
        """Add what another meter saw of other texts of the same length."""
        if other._length != self._length:
            raise LayerError(f"{self.title}: texts of {other._length} steps on one rank, of {self._length} on another.")
        if self._length is None:
            return
        device = self._sums.device
        self._sums += other._sums.roll(self._sequences * BLOCKS % MOST_BLOCKS, 0).to(device)
        self._counts += other._counts.roll(self._sequences * BLOCKS % MOST_BLOCKS, 0).to(device)
        for name in ("_sequences", "_tokens", "_seen_rows", "_reset", "_hold", "_counted", "_censored", "_half_lives"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        every = max(self._every, other._every)
        for kept in ("_kept", "_censored_kept"):
            both = [torch.cat(getattr(one, kept))[:: every // one._every].to(device) for one in (self, other)]
            setattr(self, kept, both)
        self._every = every
        self._thin()

    def __getstate__(self) -> dict[str, Any]:
        """What goes to another process, which may not have this one's device."""
        tensors = {name: value.cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        kept = {name: [value.cpu() for value in getattr(self, name)] for name in ("_kept", "_censored_kept")}
        return vars(self) | tensors | kept

    def result(self) -> Retention:
        """Return what was measured. Raises LayerError where nothing was added."""
        if self._length is None:
            raise LayerError(f"{self.title}: it has not seen a text.")
        used = self._counts > 0
        values, censored = torch.cat(self._kept).flatten(), torch.cat(self._censored_kept).flatten()
        return Retention(
            lags=self._lags,
            blocks=self._sums[used] / self._counts[used, None, None],
            positions=self._counts[used],
            half_life=half_life_quantiles(values, censored),
            censored=self._censored / self._half_lives,
            reset=self._reset / self._counted,
            hold=self._hold / self._counted,
            sampled=self._sampled,
            channels=self._all,
            modes=self._modes,
            tokens=self._tokens,
        )

    def _require_sound(self, step: Tensor, rate: Tensor) -> None:
        if step.ndim != 3 or rate.ndim != 2 or rate.shape[0] != step.shape[2] or not step.numel():
            raise LayerError(
                f"{self.title}: its clock has a step of shape {tuple(step.shape)} and rates of {tuple(rate.shape)}.",
                expected="(batch, time, channel) and (channel, mode)",
            )
        if bool(rate.isnan().any()):
            raise LayerError(f"{self.title}: {int(rate.isnan().sum()):,} of {rate.numel():,} rates are NaN.")
        lowest = float(step.amin())  # one pass finds both: the least of numbers with NaN is NaN
        if math.isnan(lowest):
            first = int(step.isnan().any(2).any(0).nonzero()[0])
            raise LayerError(
                f"{self.title}: its step is NaN from token {first:,} on.",
                advice="look for the first layer that this is said of: those after it only inherit it.",
            )
        if lowest < 0:
            raise LayerError(
                f"{self.title}: its step is negative, {lowest:.3g}: the state grows there.",
                expected="0 or more",
            )

    def _begin(self, step: Tensor, rate: Tensor) -> None:
        self._length, (self._all, self._modes) = step.shape[1], rate.shape
        context = max(1, self._length // 2)
        self._lags = lag_edges(context).to(step.device)
        count = min(self._positions, self._length - context + 1)
        self._at = torch.linspace(context, self._length, count, dtype=torch.float64).round().long().to(step.device)
        blocks = min(BLOCKS, count)
        self._block = (torch.arange(count, device=step.device) * blocks) // count
        slowness = -rate.amin(1)
        if self._at_rest is not None and len(self._at_rest) == self._all:
            slowness = self._at_rest.to(rate)
        self._sampled = spread_channels(slowness, self._channels)
        shape = MOST_BLOCKS, len(self._sampled), len(self._lags)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=step.device)
        self._counts = torch.zeros(MOST_BLOCKS, dtype=torch.float64, device=step.device)

    def _count_shares(self, step: Tensor, slowest: Tensor) -> None:
        slowest = slowest.clamp(min=0).to(step.dtype)
        passed = step.clamp(max=torch.finfo(step.dtype).max) * slowest
        self._reset += int((passed >= RESET * (1 - torch.finfo(step.dtype).eps)).sum())
        self._hold += int((passed <= HOLD).sum())
        self._counted += passed.numel()

    def _add_retention(self, total: Tensor, rate: Tensor) -> None:
        texts = torch.arange(self._sequences, self._sequences + len(total), device=total.device)
        slots = (texts[:, None] * BLOCKS + self._block).flatten() % MOST_BLOCKS
        share = torch.nn.functional.one_hot(slots, MOST_BLOCKS).double().T  # (slot, text and position)
        now = total[:, self._at]
        for k, lag in enumerate(self._lags.tolist()):
            passed = now - total[:, self._at - lag]  # (text, position, channel)
            left = torch.exp(-passed[..., None] * rate).mean(-1)
            self._sums[:, :, k] += share @ left.flatten(0, 1)
        self._counts += share.sum(1)

    def _add_half_lives(self, total: Tensor, rate: Tensor) -> None:
        lives, censored = half_lives(total, rate, self._at)
        self._censored += int(censored.sum())
        self._half_lives += censored.numel()
        lives, censored = lives.flatten(0, 1), censored.flatten(0, 1)  # (text and position, channel, mode)
        first = -self._seen_rows % self._every
        self._seen_rows += len(lives)
        self._kept.append(lives[first :: self._every])
        self._censored_kept.append(censored[first :: self._every])
        self._thin()

    def _thin(self) -> None:
        """Keep every second of the half-lives until there are few enough."""
        most = max(1, MOST_VALUES // self._kept[0][0].numel())
        while sum(map(len, self._kept)) > most:
            self._every *= 2
            self._kept = [torch.cat(self._kept)[::2]]
            self._censored_kept = [torch.cat(self._censored_kept)[::2]]


def cumulate(step: Tensor) -> Tensor:
    """Return T with T(0) = 0, (batch, time + 1, channel) float64."""
    return torch.nn.functional.pad(step.double(), (0, 0, 1, 0)).cumsum(1)


def half_lives(total: Tensor, rate: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return each position's half-life and whether it is censored, (batch, position, channel, mode).

    A censored half-life is longer than the past of its position, and that past is its value; it is infinite where the
    rate is 0.
    """
    nats = math.log(2) / rate.clamp(min=0)  # a mode that grows does not forget either
    line = total.transpose(1, 2).contiguous()  # (batch, channel, time + 1)
    wanted = line[:, :, at, None] - nats[:, None]
    shape = wanted.shape
    # The latest moment at which no more had passed than wanted: where T stands still, its end.
    after = torch.searchsorted(line, wanted.flatten(2), right=True).view(shape).clamp(min=1)
    after = torch.minimum(after, at[:, None].clamp(min=1))
    low, high = (line.gather(2, index.flatten(2)).view(shape) for index in (after - 1, after))
    part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    past = at[:, None].double().expand(shape)
    censored = wanted < 0
    lag = torch.where(censored, past, past - (after - 1 + part))
    lag = lag.where((rate > 0)[:, None], math.inf)
    return lag.transpose(1, 2), censored.transpose(1, 2)


def half_life_quantiles(values: Tensor, censored: Tensor) -> HalfLives:
    """Return the quantiles (nearest rank) of values of which some are bounds from below."""
    ordered, order = values.sort()
    first = censored[order].nonzero()
    bounded = int(first[0]) if len(first) else len(ordered)
    ranks = {name: round(share * (len(ordered) - 1)) for name, share in QUANTILES.items()}
    numbers = {name: float(ordered[rank]) for name, rank in ranks.items()}
    beyond = tuple(name for name, rank in ranks.items() if rank >= bounded and numbers[name] < math.inf)
    return HalfLives(**numbers, at_least=beyond)


def spread_channels(slowness: Tensor, most: int) -> Tensor:
    """Return the numbers of at most so many channels, spread evenly over their order by `slowness`, (channel,).

    One is taken from the middle of each of so many equal parts: the extremes count no more than the others.
    """
    order = slowness.argsort(stable=True)
    if len(order) <= most:
        return order.sort().values
    middles = (torch.arange(most, dtype=torch.float64) + 0.5) * len(order) / most
    return order[middles.long().to(order.device)].sort().values
