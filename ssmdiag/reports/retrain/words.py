"""Numbers and sentences of a comparison of arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ssmdiag.reports import words
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.results import ArmResult, PerturbationCurve
from ssmdiag.retrain.verdict import USABLE, Summary, Window, learning_rate_windows, median, summarise_arms

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
        near = "and their seeds overlap" if seeds > 1 else "which is within 5 %"
        verdict = (
            f"No clear difference: {_named(first, names)} ends at {loss(first.best)}, {_named(second, names)} at "
            f"{loss(second.best)}, {near}."
        )
    else:
        rest = "all others" if len(by_setting) > 2 else _named(second, names)
        verdict = f"{_named(first, names)} ends lowest, at {loss(first.best)}; {rest} at {loss(second.best)} or above."
        if len(by_setting) == 2:
            verdict = verdict.replace(" or above", "")
    more = _widest(windows, names) + _past_the_boundary(result, names) + _noise(by_setting, summaries, names)
    return f"{verdict}{more}{diverged}{sure}"


def _past_the_boundary(result: RetrainResult, names: dict[Arm, str]) -> str:
    """Say which runs ended with modes that grow, though their loss is finite on sequences this short."""
    grown = {
        _name(run.arm, names)
        for run in result.arms
        if run.final_loss is not None and (margin := memory_of(run.after).margin) is not None and margin < 0
    }
    if not grown:
        return ""
    return f" Ends past the stability boundary, and will blow up on longer sequences: {', '.join(sorted(grown))}."


def _noise(windows: Sequence[Window], summaries: Sequence[Summary], names: dict[Arm, str]) -> str:
    """Say up to which noise on the rates each setting holds, at its best learning rate; the sturdiest first."""
    borne = []
    for window in windows[:5]:
        runs = next(s for s in summaries if _same(s.arm, window.arm) and s.arm.lr == window.best_rate).runs
        curves = [run.perturbation for run in runs if run.perturbation]
        if curves:
            borne.append((-_reach(curves), f"{_name(window.arm, names)} {noise_borne(runs)}"))
    said = ", ".join(text for _, text in sorted(borne))
    return f" Noise on the rates at most doubles the loss up to β: {said}." if borne else ""


@dataclass(frozen=True)
class Memory:
    """What the layers of an arm remember, together."""

    horizon: float | None
    """Longest, in steps."""
    half_life: float | None
    """Longest, in steps."""
    margin: float | None
    """Smallest 1 − |λ̄|."""
    length: float | None
    """Farthest input that some channel rebuilds to one half, in steps."""
    capacity: float | None
    """Σ MF within the context of a channel: the median over channels, then over layers."""
    law: str
    """That of every layer, or "mixed"."""


def memory_of(layers: Sequence[LayerDiagnosis]) -> Memory:
    """Return the memory of an arm's layers; None for what is not known."""
    laws = {layer.decay.whole.law.value for layer in layers if layer.decay}
    capacities = [layer.capacity for layer in layers if layer.capacity]
    return Memory(
        horizon=max((layer.horizon.max for layer in layers if layer.horizon), default=None),
        half_life=max((layer.half_life.max for layer in layers if layer.half_life), default=None),
        margin=min((layer.margin for layer in layers if layer.margin is not None), default=None),
        length=max((own.length_half.max for own in capacities if own.length_half), default=None),
        capacity=median(sorted(own.capacity.median for own in capacities if own.capacity)),
        law=laws.pop() if len(laws) == 1 else "mixed" if laws else "–",
    )


def memory_columns(runs: Sequence[ArmResult]) -> list[tuple[str, list[str]]]:
    """Return (heading, cells) for the memory of each run before and after; what is known of none is left out."""
    pairs = [(memory_of(run.before), memory_of(run.after)) for run in runs]
    said: list[tuple[str, Callable[[Memory], str]]] = [
        ("horizon", lambda m: words.steps(m.horizon)),
        ("half-life", lambda m: words.steps(m.half_life)),
        ("margin", lambda m: words.margin(m.margin)),
        ("length", lambda m: words.steps(m.length)),
        ("capacity", lambda m: "–" if m.capacity is None else f"{m.capacity:.3g}"),
        ("law", lambda m: m.law),
    ]
    columns = []
    for heading, say in said:
        cells = [f"{say(a)} → {say(b)}" for a, b in pairs]
        if heading == "law":
            cells = [a.law if a.law == b.law else f"{a.law} → {b.law}" for a, b in pairs]
        if any(set(cell.split()) - {"–", "→"} for cell in cells):
            columns.append((heading, cells))
    return columns


def noise_borne(runs: Sequence[ArmResult]) -> str:
    """Return up to which noise β on the trained rates the loss stays within twice its value: the median over seeds.

    >>> noise_borne([ArmResult(Arm("exp"), None, (), 0.0)])
    '–'
    """
    curves = [run.perturbation for run in runs if run.perturbation]
    if not curves:
        return "–"
    reach = _reach(curves)
    return f"{reach:.2g}" + "+" * (reach == curves[0].betas[-1]) if reach else "none"


def kernel_error(runs: Sequence[ArmResult]) -> str:
    """Return how far the learned kernel is from the one asked for: the median over seeds."""
    error = median(sorted(run.kernel.error for run in runs if run.kernel))
    return "–" if error is None else f"{100 * error:.2g} %"


def _reach(curves: Sequence[PerturbationCurve]) -> float:
    """Return the median of the largest β each curve bears, the lower one of two; 0 where that is none."""
    ordered = sorted(curve.reach() or 0.0 for curve in curves)
    return ordered[(len(ordered) - 1) // 2]


def _name(arm: Arm, names: dict[Arm, str]) -> str:
    return next(name for other, name in names.items() if _same(other, arm))


def _named(window: Window, names: dict[Arm, str]) -> str:
    name = _name(window.arm, names)
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
        f"{_name(window.arm, names)} {decades:.2g}" for decades, window in sorted(known, key=lambda pair: -pair[0])[:5]
    )
    return f" Decades of learning rate within {USABLE:g}× the best loss: {said}."
