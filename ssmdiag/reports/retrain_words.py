"""Numbers and sentences of a comparison of arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from ssmdiag.reports import words
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.verdict import USABLE, Summary, Window, learning_rate_windows, summarise_arms

if TYPE_CHECKING:
    from ssmdiag.retrain.results import RetrainResult
    from ssmdiag.spectrum import LayerDiagnosis


def loss(value: float | None) -> str:
    """Return a loss with two digits.

    >>> loss(0.01234), loss(3.1e-5), loss(None)
    ('0.012', '3.1e-5', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def settings_of(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Return a short name for each arm, made of what differs between them; learning rate and seed left out.

    >>> settings_of([Arm("exp"), Arm("best"), Arm("best", freeze="step")])[Arm("best", freeze="step")]
    'best, step frozen'
    """
    names = [field.name for field in fields(Arm) if field.name not in ("lr", "seed")]
    differ = [name for name in names if len({getattr(arm, name) for arm in arms}) > 1 or name == "param"]
    return {arm: ", ".join(part for name in differ if (part := _part(name, getattr(arm, name)))) for arm in arms}


def _part(name: str, value: object) -> str:
    if name == "param":
        return str(value)
    if name == "freeze":
        return {"none": "learned", "both": "frozen"}.get(str(value), f"{value} frozen")
    if name == "init":
        return f"{value} start"
    if name == "recurrence_lr":
        return "" if value is None else f"recurrence at {value:g}"
    return f"weight decay {value:g}"


def answer(result: RetrainResult) -> str:
    """Return the verdict in one or two sentences: who ended lowest, and over which learning rates."""
    summaries = summarise_arms(result)
    names = settings_of([summary.arm for summary in summaries])
    windows = learning_rate_windows(result)
    finished = [summary for summary in summaries if summary.final is not None]
    lost = sum(len(summary.diverged) for summary in summaries)
    diverged = f" {words.plural(lost, 'run')} of {len(result.arms):,} diverged." if lost else ""
    if not finished:
        return f"No run finished: all {len(result.arms):,} diverged."
    by_setting = sorted((w for w in windows if w.best is not None), key=lambda window: window.best or 0.0)
    if len(by_setting) < 2:
        only = by_setting[0]
        return (
            f"{_named(only, names)} ends at a loss of {loss(only.best)}; there is nothing to compare it with.{diverged}"
        )
    first, second = by_setting[:2]
    overlap = _overlap(first, second, summaries)
    seeds = finished[0].seeds
    sure = "" if seeds > 1 else " One seed each: a small difference may be chance."
    if overlap:
        verdict = (
            f"No clear difference: {_named(first, names)} ends at {loss(first.best)}, {_named(second, names)} at "
            f"{loss(second.best)}, and their seeds overlap."
        )
    else:
        rest = "all others" if len(by_setting) > 2 else _named(second, names)
        verdict = f"{_named(first, names)} ends lowest, at {loss(first.best)}; {rest} at {loss(second.best)} or above."
        if len(by_setting) == 2:
            verdict = verdict.replace(" or above", "")
    return f"{verdict}{_widest(windows, names)}{diverged}{sure}"


def memory_of(layers: Sequence[LayerDiagnosis]) -> tuple[float | None, float | None, float | None, str]:
    """Return the longest horizon, the longest half-life, the smallest margin and the laws of an arm's layers."""
    horizon = max((layer.horizon.max for layer in layers if layer.horizon), default=None)
    half_life = max((layer.half_life.max for layer in layers if layer.half_life), default=None)
    margin = min((layer.margin for layer in layers if layer.margin is not None), default=None)
    laws = {layer.decay.whole.law.value for layer in layers if layer.decay}
    return horizon, half_life, margin, laws.pop() if len(laws) == 1 else "mixed" if laws else "–"


def _named(window: Window, names: dict[Arm, str]) -> str:
    name = next(name for arm, name in names.items() if _same(arm, window.arm))
    return f"{name} (lr {window.best_rate:g})" if len(window.rates) > 1 and window.best_rate is not None else name


def _same(a: Arm, b: Arm) -> bool:
    return all(getattr(a, f.name) == getattr(b, f.name) for f in fields(Arm) if f.name not in ("lr", "seed"))


def _overlap(first: Window, second: Window, summaries: Sequence[Summary]) -> bool:
    """Whether the seeds of the two at their best rates overlap; for one seed each, within 5 %."""
    a, b = (
        next(s for s in summaries if _same(s.arm, window.arm) and s.arm.lr == window.best_rate)
        for window in (first, second)
    )
    if a.spread and b.spread:
        return a.spread[1] >= b.spread[0]
    return (b.final or 0.0) <= 1.05 * (a.final or 0.0)


def _widest(windows: Sequence[Window], names: dict[Arm, str]) -> str:
    known = [(window.decades, window) for window in windows if window.decades is not None]
    if not any(decades for decades, _ in known):
        return ""
    said = ", ".join(
        f"{next(name for arm, name in names.items() if _same(arm, window.arm))} {decades:.2g}"
        for decades, window in sorted(known, key=lambda pair: -pair[0])[:5]
    )
    return f" Decades of learning rate within {USABLE:g}× the best loss: {said}."
