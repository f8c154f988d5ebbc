"""Numbers and sentences of a comparison of arms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ssmdiag.reports import words
from ssmdiag.reports.folding import Row
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.results import ArmResult, PerturbationCurve
from ssmdiag.retrain.verdict import USABLE, Summary, Window, learning_rate_windows, median, overlap, summarise_arms

if TYPE_CHECKING:
    from ssmdiag.capacity.capacity import CapacitySummary
    from ssmdiag.retrain.results import RetrainResult


Column = tuple[str, list[str]]
"""A heading, and a cell for each row."""
MOST_SAID = 5
"""Settings named in one sentence."""
_PARTS: dict[str, Callable[[Any], str]] = {
    "param": str,
    "freeze": lambda what: {"none": "learned", "both": "frozen"}.get(what, f"{what} frozen"),
    "init": "{} start".format,
    "recurrence_lr": lambda rate: "" if rate is None else f"recurrence at {rate:g}",
    "weight_decay": "weight decay {:g}".format,
}
"""The fields of an arm that make a setting, all but learning rate and seed: each value in words."""
Item = TypeVar("Item")


def learning_rate(value: float) -> str:
    """Return a learning rate in its shortest form.

    >>> [learning_rate(rate) for rate in (5e-6, 5e-4, 0.005, 0.05, 0.5, 5.0, 0.0)]
    ['5e-6', '5e-4', '5e-3', '0.05', '0.5', '5', '0']
    """
    if value >= 0.0095 or not value:
        return f"{value:.3g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def whole(value: float | None) -> str:
    """Return a whole number of steps.

    >>> [whole(v) for v in (3.0, 50.0, 1234.0, None)]
    ['3', '50', '1.2k', '–']
    """
    return f"{value:.0f}" if value is not None and value < 999.5 else words.steps(value)


def loss(value: float | None) -> str:
    """Return a loss with two digits.

    >>> loss(0.01234), loss(3.1e-5), loss(468.0), loss(None)
    ('0.012', '3.1e-5', '468', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    if value >= 99.5:
        return f"{value:.0f}" if value < 9999.5 else f"{value:.1e}".replace("e+0", "e")
    return f"{value:.2g}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def accuracy(value: float | None) -> str:
    """Return an accuracy between 0 and 1 as a percentage."""
    return "–" if value is None else f"{100 * value:.1f} %"


def columns_of(rows: Sequence[Item], table: Iterable[tuple[object, str, Callable[[Item], str]]]) -> list[Column]:
    """Return the columns that are used, of (whether it is used, heading, row → cell)."""
    return [(heading, [cell(row) for row in rows]) for used, heading, cell in table if used]


def setting_of(arm: Arm) -> Arm:
    """Return the arm without its learning rate and seed."""
    return replace(arm, lr=0.0, seed=0)


def settings_of(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Return a short name for each arm, made of what differs between them; learning rate and seed left out.

    >>> settings_of([Arm("exp"), Arm("best"), Arm("best", freeze="step")])[Arm("best", freeze="step")]
    'best, step frozen'
    """
    differ = [name for name in _PARTS if len({getattr(arm, name) for arm in arms}) > 1 or name == "param"]
    return {arm: ", ".join(part for name in differ if (part := _PARTS[name](getattr(arm, name)))) for arm in arms}


def answer(result: RetrainResult) -> str:
    """Return the verdict: who ended lowest, over which learning rates, what diverged, what will blow up.

    Of a comparison that was interrupted, that it was and where.
    """
    if result.interrupted_at is not None:
        at = f"step {result.interrupted_at:,} of {result.budget.steps:,}"
        return f"Interrupted at {at}: these are the losses so far, and no result."
    summaries = summarise_arms(result)
    names = settings_of([summary.arm for summary in summaries])
    windows = learning_rate_windows(result)
    finished = [window.top for window in windows if window.top]
    if not finished:
        return f"No run finished: {words.plural(len(result.arms), 'run')} diverged."
    parts = [_ranking(windows, names), _widest(windows, names), _lost(windows, summaries, names, len(result.arms))]
    parts += [_past_the_boundary(result, names), _noise(windows, names)]
    if len(finished) > 1 and all(top.seeds == 1 for top in finished):
        parts.append("One seed each: a small difference may be chance.")
    return " ".join(part for part in parts if part)


def _ranking(windows: Sequence[Window], names: dict[Arm, str]) -> str:
    """Say which setting ended lowest at its best learning rate, and which ones cannot be distinguished from it."""
    known = [window for window in windows if window.top]
    whole_ones = [window for window in known if window.top and not window.top.diverged]
    first, *others = sorted(whole_ones or known, key=lambda window: window.best or 0.0)
    assert first.top is not None
    if not others:
        alone = "; there is nothing to compare it with" if len(windows) == 1 else ""
        return f"{_named(first, names)} ends at a loss of {loss(first.best)}{alone}."
    near = [window for window in others if window.top and overlap(first.top, window.top)]
    far = [window for window in others if window not in near]
    why = "their seeds overlap" if first.top.spread and all(w.top and w.top.spread for w in near) else "within 5 %"
    if near and not far:
        said = "; ".join(f"{_named(window, names)} {loss(window.best)}" for window in [first, *near[:4]])
        return f"No clear difference, {why}: {said}{'; …' if len(near) > 4 else ''}."
    nearest = min(window.best or 0.0 for window in far)
    rest = _named(far[0], names) if len(far) == 1 else "all others" if not near else "the others"
    more = " or above" if len(far) > 1 else ""
    also = f" (so do{'es' * (len(near) == 1)} {_listed([_named(w, names) for w in near])}: {why})" if near else ""
    return f"{_named(first, names)} ends lowest, at {loss(first.best)}{also}; {rest} at {loss(nearest)}{more}."


def _lost(windows: Sequence[Window], summaries: Sequence[Summary], names: dict[Arm, str], runs: int) -> str:
    """Say which settings diverged whatever the learning rate and the seed, and how many runs did in all."""
    lost = [(summary, at) for summary in summaries for at in summary.diverged]
    parts: list[str] = []
    for window in windows:
        steps = [at for summary, at in lost if setting_of(summary.arm) == setting_of(window.arm)]
        if window.top is None and len(parts) < MOST_SAID:
            when = f"at step {steps[0]:,}" if len(steps) == 1 else f"in every run, the first at step {min(steps):,}"
            parts.append(f"{_name(window.arm, names)} diverged {when}.")
    if len(lost) > len(parts):
        parts.append(f"{words.plural(len(lost), 'run')} of {runs:,} diverged.")
    return " ".join(parts)


def _past_the_boundary(result: RetrainResult, names: dict[Arm, str]) -> str:
    """Say which runs ended with modes that grow, though their loss is finite on sequences this short."""
    grown = {
        _name(run.arm, names)
        for run in result.arms
        if run.final_loss is not None and (margin := Row("", run.after).margin) is not None and margin < 0
    }
    if not grown:
        return ""
    return f"Ends past the stability boundary, and will blow up on longer sequences: {_listed(sorted(grown))}."


def _noise(windows: Sequence[Window], names: dict[Arm, str]) -> str:
    """Say up to which noise on the rates each setting tolerates, at its best learning rate; the most robust first."""
    borne = []
    for window in windows:
        runs = window.top.runs if window.top else ()
        curves = [run.perturbation for run in runs if run.perturbation]
        if curves:
            borne.append((-_reach(curves), _name(window.arm, names), noise_borne(runs)))
    borne.sort()
    if not borne:
        return ""
    if len({said for _, _, said in borne}) == 1:
        return f"Noise on the rates at most doubles the loss up to β = {borne[0][2]} in every setting."
    said = "; ".join(f"{name} {reach}" for _, name, reach in borne[:MOST_SAID])
    return f"Noise on the rates at most doubles the loss up to β: {said}{'; …' if len(borne) > MOST_SAID else ''}."


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names[:MOST_SAID]) + ("; …" if len(names) > MOST_SAID else "")


def memory_columns(runs: Sequence[ArmResult]) -> list[Column]:
    """Return the memory of each run before → after training; columns in which nothing is known are left out.

    Of all layers together: the longest horizon and half-life in steps; the smallest margin 1 − |λ̄|; the length, the
    farthest input in steps that some channel rebuilds to one half; the capacity, Σ MF of a channel within the context,
    its median over channels and then over layers; the decay law.
    """
    pairs = [(Row("", run.before), Row("", run.after)) for run in runs]
    table: list[tuple[str, Callable[[Row], str]]] = [
        ("horizon", lambda row: words.steps(row.longest("horizon"))),
        ("half-life", lambda row: words.steps(row.longest("half_life"))),
        ("margin", lambda row: words.margin(row.margin)),
        (
            "length",
            lambda r: whole(max((c.length_half.max for c in _capacities(r) if c.length_half), default=None)),
        ),
        ("capacity", lambda r: _three_digits(median([c.capacity.median for c in _capacities(r) if c.capacity]))),
        ("law", _law),
    ]
    columns = [
        (heading, [say(a) if heading == "law" and say(a) == say(b) else f"{say(a)} → {say(b)}" for a, b in pairs])
        for heading, say in table
    ]
    return [(heading, cells) for heading, cells in columns if any(set(cell.split()) - {"–", "→"} for cell in cells)]


def _capacities(row: Row) -> list[CapacitySummary]:
    return [layer.capacity for layer in row.layers if layer.capacity]


def _three_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _law(row: Row) -> str:
    laws = {layer.decay.law[0] for layer in row.layers if layer.decay}
    return laws.pop() if len(laws) == 1 else "mixed" if laws else "–"


def losses_so_far(result: RetrainResult) -> list[Column]:
    """Return a row for each arm of a comparison that was interrupted: its last validation, and how far it came."""
    arms = [run.arm for run in result.arms]
    names = settings_of(arms)
    classes = any(point.accuracy is not None for run in result.arms for point in run.history[-1:])
    table: list[tuple[object, str, Callable[[ArmResult], str]]] = [
        (True, "setting", lambda run: names[run.arm]),
        (len({arm.lr for arm in arms}) > 1, "lr", lambda run: learning_rate(run.arm.lr)),
        (len({arm.seed for arm in arms}) > 1, "seed", lambda run: str(run.arm.seed)),
        (True, "loss", lambda run: loss(run.history[-1].loss if run.history else None)),
        (True, "at step", lambda run: f"{run.history[-1].step:,}" if run.history else "–"),
        (classes, "accuracy", lambda run: accuracy(run.history[-1].accuracy if run.history else None)),
        (True, "arm", _end),
    ]
    return columns_of(result.arms, table)


def _end(run: ArmResult) -> str:
    if run.diverged_at is not None:
        return f"diverged at {run.diverged_at:,}"
    return "done" if run.interrupted_at is None else f"stopped at {run.interrupted_at:,}"


def spread(summary: Summary, dash: str) -> str:
    """Return the smallest and the largest final loss over seeds."""
    return f"{loss(summary.spread[0])} {dash} {loss(summary.spread[1])}" if summary.spread else "–"


def diverged_at(summary: Summary) -> str:
    """Return the steps at which runs diverged."""
    return ", ".join(f"step {at:,}" for at in summary.diverged) or "no"


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
    """Return how far the learned kernel is from the target: the median over seeds."""
    error = median(sorted(run.kernel.error for run in runs if run.kernel))
    return "–" if error is None else f"{100 * error:.2g} %" if error < 0.0995 else f"{100 * error:.0f} %"


def _reach(curves: Sequence[PerturbationCurve]) -> float:
    """Return the median of the largest β each curve tolerates, the lower one of two; 0 where it is none."""
    ordered = sorted(curve.reach() or 0.0 for curve in curves)
    return ordered[(len(ordered) - 1) // 2]


def _name(arm: Arm, names: dict[Arm, str]) -> str:
    return next(name for other, name in names.items() if setting_of(other) == setting_of(arm))


def _named(window: Window, names: dict[Arm, str]) -> str:
    name = _name(window.arm, names)
    return (
        f"{name} (lr {learning_rate(window.best_rate)})"
        if len(window.rates) > 1 and window.best_rate is not None
        else name
    )


def _widest(windows: Sequence[Window], names: dict[Arm, str]) -> str:
    known = [(window.decades, window) for window in windows if window.decades is not None]
    if not any(decades for decades, _ in known):
        return ""
    ordered = sorted(known, key=lambda pair: -pair[0])
    said = "; ".join(f"{_name(window.arm, names)} {decades:.2g}" for decades, window in ordered[:MOST_SAID])
    return (
        f"Decades of learning rate within {USABLE:g}× the best loss: {said}{'; …' if len(ordered) > MOST_SAID else ''}."
    )
