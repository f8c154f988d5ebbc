"""What ssmdiag says of a trained layer's decay, statement by statement, against the exact kernel.

| statement | true if |
|---|---|
| `half`, `nine_tenths`, `ninety_nine` | at that lag, and at none before it, so much of the energy has passed |
| tail: `energy_share` | that share of the energy within the context is left at lag `from`, to a millionth |
| tail: exponential, `rate` | a group of modes, rates within 10 % and `rate` among them, holds 90 % of what is left |
| tail: exponentials, `rates` | groups of those rates together hold 90 % of what is left |
| tail: band, `rates` | all modes from the one rate to the other together hold 90 % of what is left |
| energy curve | its exponentials come as near to what is left as they say, at every lag from `from` to `to` |
| a fitted law | what is left of the energy in its window follows it as closely as the verdict asks for |

The group holds it at every lag in `from` … `to`; the others alone are stepped for that. What is left falls at twice
its rate on average, to a tenth and to what modes of one rate beat.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ssmdiag import diagnose, extract_recurrences, read_checkpoint
from ssmdiag.assessment.memory import assess_memory, lag_edges
from ssmdiag.recurrence.channels import select_channel
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.reports.json import layer_document
from ssmdiag.reports.kernel_text import Shown, document
from tests.assessment.trained_layers.exact import Array, ExactEnergy, remaining
from tests.assessment.trained_layers.layers import FAMILIES
from tests.assessment.trained_layers.training import Trained

SHARES = {"half": 0.5, "nine_tenths": 0.9, "ninety_nine": 0.99}
SAME_RATE = 1.1
"""Rates of one group: the largest is at most this many times the smallest."""
HELD = 0.9
"""Share of what is left that the group holds."""
MOST_SUMS = 4000
"""Choices of groups that are tried for a sum of exponentials."""
WIDEST = 16 * (1 + 1e-6)
"""How many times the slowest rate of a band its fastest may be."""
FLAT = 0.05
"""Nepers over the window that a tail which is flat may lose."""
CLOSE = 1e-6
MOST_DB = 1.5
"""How far from the energy what describes it may be."""
LAW_DB = {"exponential": 1.5, "polynomial": 0.3, "truncated": 0.6, "flat": 0.1}
"""Rms residual up to which a law is named; a tenth of a dB is allowed for."""


COUNTED = ("count", "law", "tail", "curve", "either", "any", "lags")


@dataclass
class Tally:
    """Statements on one kind of thing, channels or layers, of one checkpoint."""

    count: int = 0
    law: int = 0
    tail: int = 0
    curve: int = 0
    either: int = 0
    """With a law or a tail."""
    any: int = 0
    """With one of these or a curve."""
    lags: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, said: Mapping[str, Any], false: Sequence[str]) -> None:
        self.count += 1
        named, tail = said["law"] != "undetermined", said.get("tail") is not None
        self.law += named
        curve = said.get("energy_curve") is not None
        self.tail += tail
        self.curve += curve
        self.either += named or tail
        self.any += named or tail or curve
        self.lags += said.get("lags") is not None
        self.wrong += false

    def __add__(self, other: Tally) -> Tally:
        sums = {name: getattr(self, name) + getattr(other, name) for name in COUNTED}
        return Tally(**sums, wrong=self.wrong + other.wrong)


def judge(trained: Trained, context: int) -> tuple[Tally, Tally]:
    """Return what is said of the channels and of the layers of a checkpoint, and what of it is false."""
    channels, layers = Tally(), Tally()
    with safe_open(trained.path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    told = {
        layer.name: layer_document(layer)["decay"]["layer"]
        for layer in diagnose(trained.path, context_length=context).layers
    }
    for recurrence in extract_recurrences(read_checkpoint(trained.path)):
        inside = f"{recurrence.layer}."
        own = {name.removeprefix(inside): value for name, value in tensors.items() if name.startswith(inside)}
        exact = ExactEnergy(FAMILIES[trained.family].state_space(own))
        whole = told[recurrence.layer]
        layers.add(whole, [f"{recurrence.layer}: {said}" for said in false_statements(whole, exact, None, context)])
        for channel in range(recurrence.channels):
            said = channel_statement(recurrence, channel, context)
            false = false_statements(said, exact, channel, context)
            channels.add(said, [f"{recurrence.layer}, channel {channel}: {one}" for one in false])
    return channels, layers


def channel_statement(recurrence: Recurrence, channel: int, context: int) -> dict[str, Any]:
    """Return what `ssmdiag kernel --channel` says of a channel's decay."""
    memory = assess_memory(select_channel(recurrence, channel), context)
    told: dict[str, Any] = document(memory, Shown("", channel, context))["decay"]["layer"]
    return told


def false_statements(told: Mapping[str, Any], exact: ExactEnergy, channel: int | None, context: int) -> list[str]:
    """Return what is false of a statement on a channel, or, for None, on the layer: all channels' energy together."""
    exact = exact if channel is None else exact.of(channel)
    left = exact.left.sum(0)
    false = [f"{name} at {lag}" for name, lag in (told.get("lags") or {}).items() if not _passed(left, name, lag)]
    if tail := told.get("tail"):
        false += [f"tail {tail}: {why}" for why in _false_of_tail(tail, exact, left, context)]
    if curve := told.get("energy_curve"):
        false += [f"energy curve {curve}: {why}" for why in _false_of_curve(curve, left)]
    if told["law"] in LAW_DB and not _follows(told, left):
        false.append(f"{told['law']} over lags {told['window']}")
    return false


def _passed(left: Array, name: str, lag: float) -> bool:
    """Whether that share of the energy has passed at a lag and not one before it, but for rounding."""
    limit = (1 - SHARES[name]) * left[0]
    return bool(_at(left, lag) <= limit * (1 + 1e-9) and (lag == 0 or _at(left, lag - 1) > limit * (1 - 1e-9)))


def _false_of_tail(tail: Mapping[str, Any], exact: ExactEnergy, left: Array, context: int) -> list[str]:
    if tail["law"] not in ("exponential", "exponentials", "band", "flat"):
        return [f"nothing here judges a tail that is {tail['law']}"]
    start, last = int(tail["from"]), min(int(tail["to"]), context - 1, left.size - 1)
    rates = tail["rates"] if tail["law"] in ("exponentials", "band") else [tail["rate"]]
    false = []
    within = left[: context + 1] - _at(left, context)
    share = _at(within, start) / within[0]
    if abs(share - tail["energy_share"]) > CLOSE:
        false.append(f"the share left is {share:.6g}")
    if last <= start:
        return [*false, "nothing is left to see there"]
    if tail["law"] == "band":
        low, high = rates
        groups = [(exact.rates >= low * (1 - CLOSE)) & (exact.rates <= high * (1 + CLOSE))]
        if high > WIDEST * low:
            false.append(f"rates {high / low:.3g} times one another are no band")
    else:
        sums = islice(product(*(_groups(exact.rates, rate) for rate in rates)), MOST_SUMS)
        groups = [np.logical_or.reduce(some) for some in sums]
    if not any(_holds(group, exact, left, start, last) for group in groups):
        false.append(f"no group of modes of {'one rate' if len(rates) == 1 else 'these rates'} holds what is left")
    fall = math.log(left[start] / left[last]) / (2 * (last - start))
    # Modes of one rate beat against each other: a neper in amplitude between both ends, at most.
    beat = 1 / (last - start)
    if not 0.9 * min(rates) - beat <= fall <= 1.1 * max(rates) + beat:
        false.append(f"what is left falls at {fall:.4g} a step")
    if tail["law"] == "flat" and max(rates) * (last - start) > FLAT:
        false.append(f"{max(rates) * (last - start):.3g} nepers are lost")
    return false


def _false_of_curve(curve: Mapping[str, Any], left: Array) -> list[str]:
    start, last = int(curve["from"]), min(int(curve["to"]), left.size - 1)
    false = []
    if abs(left[start] / left[0] - curve["energy_share"]) > CLOSE:
        false.append(f"the share left is {left[start] / left[0]:.6g}")
    lag = np.arange(last + 1 - start)
    told = sum(term["share"] * np.exp(-2 * term["rate"] * lag) for term in curve["terms"])
    off = np.abs(10 * np.log10(told * left[start] / left[start : last + 1])).max()
    if not off <= min(curve["within_db"], MOST_DB):
        false.append(f"{off:.3g} dB off")
    return false


def _groups(rates: Array, rate: float) -> list[NDArray[np.bool_]]:
    """Return groups of modes, (channel, mode), rates within 10 % and `rate` between their ends; the largest first."""
    groups = [(rates >= low) & (rates <= SAME_RATE * low) for low in np.unique(rates[rates <= rate * (1 + CLOSE)])]
    found = [group for group in groups if rates[group].max() >= rate * (1 - CLOSE)]
    return sorted(found, key=lambda group: -int(group.sum()))


def _holds(group: NDArray[np.bool_], exact: ExactEnergy, left: Array, start: int, last: int) -> bool:
    """Whether all other modes together hold at most a tenth of what is left, at every lag from `start` to `last`."""
    others = exact.without(group, last + 1).sum(0)[start:]
    return bool((others <= (1 - HELD) * left[start : last + 1] * (1 + CLOSE)).all())


def _follows(told: Mapping[str, Any], left: Array) -> bool:
    """Whether what is left of the energy within a fitted law's window follows it as closely as its verdict asks for.

    Bins swing as the kernel does; what is left of them does not.
    """
    first, last = told["window"]
    lag = np.arange(first, last + 1, dtype=float)
    power = (1 + lag / told["offset"]) ** -told["exponent"] if told["exponent"] is not None else 1.0
    law = remaining((power * np.exp(-(told["rate"] or 0.0) * lag))[None] ** 2)[0]
    own = left[first : last + 1] - _at(left, last + 1)
    at = lag_edges(last + 1 - first)[:-1].numpy()
    return bool((10 * np.log10(own[at] / law[at])).std() <= LAW_DB[told["law"]] + 0.1)


def _at(values: Array, lag: float) -> float:
    return float(values[int(lag)]) if lag < len(values) else 0.0
