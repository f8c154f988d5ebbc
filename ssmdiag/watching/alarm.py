"""Which layers are to be warned of: broken, growing, at the boundary, or on the way there. Each state is said once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from ssmdiag.printable import module_name, plural, printable
from ssmdiag.watching.outlook import arrival
from ssmdiag.watching.reading import LayerReading

REMEMBERED = 32
"""Earlier readings of each layer that its outlook rests on."""
CALM = 10
"""Readings without a reason to warn after which the next one is said again."""
CROSSES_WITHIN = 4.0
"""Readings ahead within which a rate that is a weight itself is said to cross 0. Its noise does not shrink with it."""


class Level(IntEnum):
    """How bad it is, worst last."""

    FINE = 0
    OVERFLOWING = 1
    NEARING = 2
    NEAR = 3
    GROWS = 4
    BROKEN = 5


@dataclass
class _Track:
    """One layer's last readings, and what has been said of it."""

    steps: list[int] = field(default_factory=list)
    slowest: list[float] = field(default_factory=list)
    """Logarithm of the smallest rate; NaN where it has none."""
    fastest: list[float] = field(default_factory=list)
    """Minus the logarithm of the largest: it falls as that rises."""
    rates: list[float] = field(default_factory=list)
    """The smallest rate itself."""
    starts_there: bool = False
    """Whether it was at the boundary at its first reading, as LinOSS is by design: no reason to warn."""
    said: Level = Level.FINE
    calm: int = 0

    def add(self, train_step: int, layer: LayerReading) -> None:
        """Take the next reading, and forget the oldest."""
        self.steps = [*self.steps[-REMEMBERED:], train_step]
        self.slowest = [*self.slowest[-REMEMBERED:], _log(layer.slowest_rate)]
        self.fastest = [*self.fastest[-REMEMBERED:], -_log(layer.fastest_rate)]
        self.rates = [*self.rates[-REMEMBERED:], layer.slowest_rate]


class Alarm:
    """Follows every layer from reading to reading."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._tracks: dict[str, _Track] = {}

    def hear(self, train_step: int, layers: Sequence[LayerReading]) -> list[str]:
        """Return sentences on what is new, the worst first; one for all the layers to which the same happens."""
        new: dict[Level, list[tuple[LayerReading, str]]] = {}
        for layer in layers:
            track = self._tracks.setdefault(layer.name, _Track(starts_there=abs(layer.margin) <= self.limit))
            track.add(train_step, layer)
            level, sentence = self._judge(layer, track)
            track.calm = 0 if level else track.calm + 1
            if level > track.said:
                new.setdefault(level, []).append((layer, sentence))
                track.said = level
            elif track.calm >= CALM:
                track.said = Level.FINE
        found = []
        for level in sorted(new, reverse=True):
            worst, sentence = min(new[level], key=lambda pair: pair[0].margin)
            others = [printable(module_name(layer.name)) for layer, _ in new[level] if layer is not worst]
            if others:
                more = f" and {len(others) - 3} more" if len(others) > 3 else ""
                sentence += f" The same: {', '.join(others[:3])}{more}."
            found.append(f"step {train_step:,}: {sentence}")
        return found

    def _judge(self, layer: LayerReading, track: _Track) -> tuple[Level, str]:
        name, margin = printable(module_name(layer.name)), layer.margin
        if layer.nonfinite:
            count = f"{layer.nonfinite:,} of {plural(layer.modes, 'mode')}"
            return Level.BROKEN, f"{count} of {name} {'is' if layer.nonfinite == 1 else 'are'} NaN or infinite."
        if layer.linearised:
            return Level.FINE, ""
        if margin < (-self.limit if track.starts_there else 0.0):
            return Level.GROWS, f"a mode of {name} grows with every step, by a factor of 1 + {-margin:.2g}."
        if not margin > self.limit and not track.starts_there:
            half = "never" if math.isinf(layer.half_life) else f"in {plural(f'{layer.half_life:.2g}', 'step')}"
            return Level.NEAR, (
                f"{name} is {margin:.2g} from the stability boundary (limit {self.limit:.2g}); "
                f"its slowest mode loses half {half}."
            )
        at = None if track.starts_there else self._crossing(layer, track)
        if at is not None:
            return Level.NEARING, (
                f"{name} nears the stability boundary: its smallest margin fell to {margin:.2g}, from "
                f"{-math.expm1(-track.rates[-2]):.2g} a reading before, and at this pace is under {self.limit:.2g} "
                f"by step {math.ceil(at):,}."
            )
        at = arrival(track.steps, track.fastest, -math.log(layer.ceiling))
        if at is not None:
            return Level.OVERFLOWING, (
                f"the fastest rate of {name} rose to {layer.fastest_rate:.2g} nats per step, from "
                f"{math.exp(-track.fastest[-2]):.2g} a reading before, and at this pace overflows by step "
                f"{math.ceil(at):,}."
            )
        return Level.FINE, ""

    def _crossing(self, layer: LayerReading, track: _Track) -> float | None:
        """Return the train step at which the margin falls to the limit, along log rate or along the rate itself."""
        floor = -math.log1p(-self.limit)
        at = arrival(track.steps, track.slowest, math.log(floor))
        if at is None and layer.linear:
            at = arrival(
                track.steps, track.rates, floor, ahead=CROSSES_WITHIN, least=layer.slowest_rate / CROSSES_WITHIN
            )
        return at


def _log(rate: float) -> float:
    return math.log(rate) if 0 < rate < math.inf else math.nan
