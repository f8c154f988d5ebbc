"""A layer's decay as sentences: the law that was fitted, the law of what remains, the lags that hold the energy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ssmdiag.decay.tail import TailLaw, TailStatus
from ssmdiag.decay.verdict import Law

if TYPE_CHECKING:
    from ssmdiag.assessment.remaining import Remaining
    from ssmdiag.decay.comparison import DecayComparison
    from ssmdiag.decay.energy_curve import EnergyCurve
    from ssmdiag.decay.tail import Tail

PLAIN = (TailLaw.EXPONENTIAL, TailLaw.FLAT)
SAME_RATE = 0.05
"""Rates this close count as equal."""
SILENT = (TailStatus.NOT_ASKED, TailStatus.NO_KERNEL, TailStatus.DENSE, TailStatus.FINITE, TailStatus.SHORT_MEMORY)
"""Reasons that the law's own sentence has given, or that say nothing about the layer."""


def describe(whole: DecayComparison, remaining: Remaining) -> str:
    """Return what is known of a layer's decay, the surest last."""
    slowest, tail = remaining.whole.slowest_rate(0), remaining.whole.row(0)
    decay = whole.channel(0)
    said = [] if decay.law is Law.FINITE else [whole.describe(0, slowest)]
    undetermined = decay.law is Law.UNDETERMINED
    rules = tail is not None and (tail.law in PLAIN or (undetermined and tail.law is TailLaw.EXPONENTIALS))
    throughout = tail is not None and rules and tail.first == 0
    curve = remaining.curve if undetermined and not throughout else None
    if curve is not None:
        said.append(describe_curve(curve))
        if slowest is not None and not rules:
            said.append(f"The slowest modes forget half in {_counted(_steps(math.log(2), slowest))}.")
    if tail is not None and (rules or (undetermined and curve is None)):
        fitted = decay.law is Law.EXPONENTIAL and decay.window is not None and tail.first <= decay.window[0]
        agree = fitted and abs((decay.rate or 0.0) - tail.rate) <= SAME_RATE * tail.rate
        if not agree and not (decay.law is Law.FLAT and tail.law is TailLaw.FLAT and tail.first == 0):
            said.append(describe_tail(tail))
    if tail is None and curve is None and undetermined and slowest is not None:
        reason = remaining.whole.reason(0)
        if reason not in SILENT:
            why = f"{reason.value[:1].upper()}{reason.value[1:]}"
            said.append(f"{why}; the slowest forget half in {_counted(_steps(math.log(2), slowest))}.")
    if decay.law is Law.FINITE and not decay.window:
        return ""  # few taps: where they end says all
    lags = describe_lags(remaining.passing.lags[0].tolist(), float(remaining.passing.heaviness[0]))
    return " ".join([*said, lags] if lags else said)


def describe_tail(tail: Tail) -> str:
    """Return one sentence on the law of what remains."""
    where = f" from lag {tail.first:,} on" if tail.first else ""
    which = f", which is the last {share(tail.energy_share)} of the energy" if tail.first else ""
    if tail.law is TailLaw.FLAT:
        return f"By its modes it does not decay{where}{which}."
    if tail.law is TailLaw.BAND:
        fast, slow = (_steps(math.log(2), rate) for rate in reversed(tail.rates))
        return f"By its modes it falls with rates between half every {fast} and half every {slow} steps{where}{which}."
    if tail.law is TailLaw.EXPONENTIALS:
        *some, last = (_steps(math.log(2), rate) for rate in reversed(tail.rates))
        halves = f"{', '.join(some)} and {last}"
        return f"By its modes it is a sum of {len(tail.rates)} exponentials{where}, half every {halves} steps{which}."
    return f"By its modes it is exponential{where}, half every {_every(_steps(math.log(2), tail.rate))}{which}."


def describe_curve(curve: EnergyCurve) -> str:
    """Return one sentence on the exponentials that describe the energy that remains."""
    where, what = f"Up to lag {curve.last:,}", "its energy"
    if curve.first:
        where = f"From lag {curve.first:,} to {curve.last:,}"
        what = f"the last {share(curve.energy_share)} of its energy"
    first, *others = (_steps(math.log(2), rate) for rate in curve.rates)
    if not others:
        return f"{where} {what} is exponential to {curve.within_db:.1f} dB, half gone every {_every(first)}."
    parts = [share(part) for part in curve.shares]
    more = ", ".join(f"{part} every {steps}" for part, steps in zip(parts[1:], others, strict=True))
    many = f"{len(curve.rates)} exponentials to {curve.within_db:.1f} dB"
    return f"{where} {what} is that of {many}: {parts[0]} half gone every {_every(first)}, {more}."


def describe_lags(lags: list[float], heaviness: float) -> str:
    """Return one sentence on the lags after which 50, 90 and 99 % of the energy have passed; empty if none is known.

    >>> describe_lags([35.0, 115.0, 231.0], 1.0)
    '50, 90, 99 % of the energy have passed after 35, 115, 231 steps.'
    """
    known = [(name, lag) for name, lag in zip(("50", "90", "99"), lags, strict=True) if math.isfinite(lag)]
    if not known:
        return ""
    names, steps = ", ".join(name for name, _ in known), ", ".join(f"{lag:,.0f}" for _, lag in known)
    noun = "step" if steps == "1" else "steps"
    said = f"{names} % of the energy {'has' if len(known) == 1 else 'have'} passed after {steps} {noun}"
    if heaviness >= HEAVY:
        return f"{said}: a tail {heaviness:.2g} times as long as an exponential's."
    return said + (
        f": it ends {1 / heaviness:.2g} times sooner than an exponential." if heaviness <= 1 / HEAVY else "."
    )


HEAVY = 1.25
"""t₉₉/t₅₀ over an exponential's from which a tail is called long."""


def share(value: float) -> str:
    """Return a share of the energy in per cent, to two digits.

    >>> share(0.1011), share(0.98), share(0.0042), share(0.9999)
    ('10 %', '98 %', '0.42 %', '100 %')
    """
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.2g} %"


def _steps(nats: float, rate: float) -> str:
    """Return nats / rate in steps, to three digits."""
    steps = nats / rate if rate > 0 else math.inf
    return f"{steps:,.0f}" if 1000 <= steps < 1e6 else f"{steps:,.3g}"


def _counted(steps: str) -> str:
    """Return a number of steps with its unit.

    >>> _counted("1"), _counted("0.5")
    ('1 step', '0.5 steps')
    """
    return f"{steps} step{'s' * (steps != '1')}"


def _every(steps: str) -> str:
    """Return what goes after `every`.

    >>> _every("1"), _every("5.2")
    ('step', '5.2 steps')
    """
    return "step" if steps == "1" else f"{steps} steps"
