"""The verdict on a run in sentences: the answer in one, then one for every layer that has something to say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ssmdiag.compare.projection import REACH, Unnamed
from ssmdiag.compare.trend import FEWEST, Verdict
from ssmdiag.reports.answer import AT_REST, Answer
from ssmdiag.reports.folding import join_labels
from ssmdiag.reports.words import apart, margin, plural, steps

if TYPE_CHECKING:
    from ssmdiag.compare.layer_history import LayerHistory, Limit
    from ssmdiag.compare.projection import Crossing
    from ssmdiag.compare.run import RunComparison
    from ssmdiag.compare.significance import Slope
    from ssmdiag.reports.answer import Status

MOST_NAMED = 6
"""Other layers that the answer names; more are counted."""
MOST_SENTENCES = 6
"""Layers that `--full` has a sentence on."""
FEW_SENTENCES = 1
"""Those besides the one in the answer that a short report has."""
SAID = {
    Verdict.BROKEN: "not finite",
    Verdict.CROSSED: "at or past the boundary",
    Verdict.CONVERGING: "converging",
    Verdict.RECEDING: "receding",
    Verdict.SETTLED: "settled",
    Verdict.STEADY: "steady",
    Verdict.UNDETERMINED: "undetermined",
}


def answer(run: RunComparison, labels: Sequence[str]) -> Answer:
    """Return the answer on a run: what its worst layer does, which others do not stand still, what was not read."""
    if not run.layers:
        return Answer("problem", "no layer could be compared")
    named = dict(zip((layer.name for layer in run.layers), labels, strict=True))
    worst = worst_of(run)
    status, text = status_of(worst, run, named)
    if run.problems:
        status, text = "problem", f"only partly read ({plural(len(run.problems), 'problem')}); {text}"
    calm = (Verdict.STEADY, Verdict.SETTLED)
    rest = {v: [named[o.name] for o in run.layers if o.verdict is v and o is not worst] for v in Verdict}
    telling = {v: where for v, where in rest.items() if where and v not in calm}
    count = sum(map(len, telling.values()))
    if 0 < count <= MOST_NAMED:
        text += f"; other layers: {', '.join(f'{join_labels(where)} {SAID[v]}' for v, where in telling.items())}"
    elif count:
        said = ", ".join(f"{len(where):,} {SAID[v]}" for v, where in telling.items())
        text += f"; of the {len(run.layers) - 1:,} other layers {said}"
    if status == "ok" and AT_REST not in text and not all(layer.last.time_invariant for layer in run.layers):
        text += f"; read {AT_REST}"
    return Answer(status, text)


def worst_of(run: RunComparison) -> LayerHistory:
    """Return the layer that the answer is about."""
    return min((layer for layer in run.layers if layer.verdict is run.verdict), key=urgency)


def layer_sentences(run: RunComparison, labels: Sequence[str], *, full: bool = True) -> Iterator[str]:
    """Yield a sentence on every layer that moves or cannot be judged, the most urgent first.

    On six at most; unless `full`, on one besides the layer that the answer is about, and then how many more there are.
    """
    named = dict(zip((layer.name for layer in run.layers), labels, strict=True))
    quiet = [Verdict.STEADY, Verdict.SETTLED]
    if len(run.checkpoints) < FEWEST:
        quiet.append(Verdict.UNDETERMINED)
    telling = sorted((layer for layer in run.layers if layer.verdict not in quiet), key=urgency)
    if not full:
        telling = [layer for layer in telling if layer is not worst_of(run)]
    most = MOST_SENTENCES if full else FEW_SENTENCES
    for layer in telling[:most]:
        yield f"layer {named[layer.name]}: {said_of(layer, run, brief=not full)}"
    if left := [named[layer.name] for layer in telling[most:]]:
        where = "--full" if not full else "in the table (--all) and in --format json"
        yield f"layer{'s' * (len(left) > 1)} {join_labels(left)}: {where}"


def status_of(layer: LayerHistory, run: RunComparison, named: Mapping[str, str]) -> tuple[Status, str]:
    """Return the status of a run by its most urgent layer, and what that layer does."""
    where = f"layer {named[layer.name]}" if len(run.layers) > 1 else "its layer"
    count, over = len(run.checkpoints), f"over {plural(len(run.checkpoints), 'checkpoint')}"
    said = said_of(layer, run, brief=True)
    if layer.verdict is Verdict.BROKEN:
        return "problem", f"{where}: {said}"
    if layer.verdict is Verdict.CROSSED:
        status: Status = "problem" if layer.last.unstable or layer.fails("crossing") else "warning"
        return status, f"{where} is at the boundary: {said}" if status != "problem" else f"{where}: {said}"
    if layer.verdict is Verdict.CONVERGING:
        return "problem" if layer.fails("crossing") else "warning", f"{where} converges to the boundary: {said}"
    if layer.verdict is Verdict.UNDETERMINED:
        if count < FEWEST:
            few = f"{plural(count, 'checkpoint')} cannot tell a trend, {FEWEST} or more can"
            return "undetermined", f"{few}; changed most: {where}, {_change(layer)}"
        return "undetermined", f"{over} no trend of {where} can be told from noise: {said}"
    if layer.verdict is Verdict.RECEDING:
        return "ok", f"no layer nears the boundary; {where} recedes from it: {said}"
    if layer.verdict is Verdict.SETTLED:
        return "ok", f"no layer drifts any more; {where} moved most: {said}"
    return _still(run, named)


def _still(run: RunComparison, named: Mapping[str, str]) -> tuple[Status, str]:
    """Return the status of a run in which no layer moved, and how little it did."""
    largest = max(abs(x.slowest.change) if x.slowest else 0.0 for x in run.layers)
    spanned = run.checkpoints[-1].step - run.checkpoints[0].step
    over = f"over {plural(len(run.checkpoints) if run.unit == 'checkpoint' else spanned, run.unit)}"
    if largest == 0:
        text = _unmoved(run, named, over)
        unseen = not all(layer.last.time_invariant for layer in run.layers) and run.steering_changed != {}
        alike = all(layer.first.rate == layer.last.rate for layer in run.layers)
        return "undetermined" if unseen and alike else "ok", text
    return "ok", f"no layer's slowest mode moved by more than {_percent(math.expm1(largest))} {over}"


def _unmoved(run: RunComparison, named: Mapping[str, str], over: str) -> str:
    """Return the sentence for a run in which no rate moved: a selective layer may have changed otherwise."""
    if any(layer.first.rate != layer.last.rate for layer in run.layers):
        return f"no layer's slowest mode moved {over}"
    if all(layer.last.time_invariant for layer in run.layers):
        return f"no layer's decay changed at all {over}"
    if run.steering_changed == {}:
        return f"no layer's decay changed at all {over}, nor what steers it by the input"
    still = f"no layer's decay changed {over} {AT_REST}"
    if not run.steering_changed:
        return f"{still}; not all that steers it by the input could be compared"
    tensors = list(dict.fromkeys(name for names in run.steering_changed.values() for name in names))
    layers = [named.get(path, path) for path in run.steering_changed]
    where = f"layer{'s' * (len(layers) > 1)} {join_labels(layers, 4)}"
    return f"{still}; what steers it by the input did: {join_labels(tensors, 4)} in {where}"


def urgency(layer: LayerHistory) -> tuple[int, bool, float, float]:
    """Return what sorts layers, the most urgent first: verdict, slowest mode before slow modes, next limit, change."""
    limit = layer.next_limit
    at = limit.at if limit and limit.at is not None else math.inf
    change = abs(layer.trend.change) if layer.trend else 0.0
    return list(Verdict).index(layer.verdict), layer.by_tail, at, -change


def said_of(layer: LayerHistory, run: RunComparison, *, brief: bool = False) -> str:
    """Return what a layer does, without its name and without a full stop; in brief, only the nearest limits."""
    trend, unit = layer.trend, run.unit
    if layer.verdict is Verdict.BROKEN:
        at = next(p.step for p in layer.points if p.nonfinite)
        broken = layer.last.nonfinite
        return f"{plural(broken, 'mode')} {'is' if broken == 1 else 'are'} NaN or infinite, from {unit} {at:,} on"
    if layer.verdict is Verdict.CROSSED:
        return _crossed(layer, unit)
    if trend is None:
        return "too few of its checkpoints have a decaying mode"
    if layer.verdict is Verdict.CONVERGING:
        pace = _pace(trend.outlook, unit, down=True)
        return f"{_change(layer)}, halving every {pace}; {'; '.join(_limits(layer, unit, 1 if brief else 4))}"
    if layer.verdict is Verdict.RECEDING:
        return f"{_change(layer)}, doubling every {_pace(trend.outlook, unit, down=False)}"
    if layer.verdict is Verdict.SETTLED:
        late = _percent(math.expm1(trend.late_spread or 0.0))
        return f"{_change(layer)}, and kept within {late} in the second half of the run"
    if layer.verdict is Verdict.STEADY:
        return "its decay did not change at all" if trend.spread == 0 else _change(layer)
    return f"{_change(layer)}; {_doubt(layer, run, brief=brief)}"


def _change(layer: LayerHistory) -> str:
    """Return `margin fell 27 % (0.018 → 0.013)`; of the rate of the slow twentieth where that decides the verdict."""
    what, first, last = "margin", layer.first.margin, layer.last.margin
    if layer.by_tail:
        what = "slow modes' rate"
        first, last = (point.rate.p05 if point.rate else None for point in (layer.first, layer.last))
    if first is None or last is None or first <= 0:
        return f"{what} went from {margin(first)} to {margin(last)}"
    if first == last:
        moved = "did not move"
    elif last > 0 and not 0.2 < last / first < 5:
        moved = f"{'fell' if last < first else 'rose'} {steps(max(first / last, last / first))}-fold"
    else:
        moved = f"{'fell' if last < first else 'rose'} {_percent(last / first - 1)}"
    before, after = apart(first, last)
    return f"{what} {moved} ({before} → {after})"


def _percent(share: float) -> str:
    size = abs(100 * share)
    return f"{size:.0f} %" if size >= 9.95 else f"{size:.2g} %" if size >= 0.01 else "under 0.01 %"


def _crossed(layer: LayerHistory, unit: str) -> str:
    last = layer.last
    worst = f"1 − |λ̄| = {margin(last.margin)}"
    modes = last.unstable or last.marginal
    do = ("grows", "does not decay") if modes == 1 else ("grow", "do not decay")
    count = f"{plural(modes, 'mode')} {do[0] if last.unstable else do[1]}"
    since = next(p for p in layer.points if p.unstable or p.marginal)
    when = "in every checkpoint" if since is layer.points[0] else f"since {unit} {since.step:,}"
    return f"{count} ({worst}) {when}"


def _limits(layer: LayerHistory, unit: str, most: int) -> Iterator[str]:
    """Yield what the layer has passed in the run and what it is projected to reach, the nearest `most` of each."""
    passed = [limit for limit in layer.limits if limit.passed is not None and not limit.from_start]
    for limit in passed[-most:]:
        yield f"{_reached(limit)} since {unit} {limit.passed:,}"
    ahead = [limit for limit in layer.limits if limit.projection is not None]
    near = [limit for limit in ahead if limit.at is not None]
    for limit in near[:most]:
        assert limit.projection is not None
        yield f"{_reaches(limit)} at about {unit} {_when(limit.projection)}"
    if ahead and ahead[0].projection and ahead[0].projection.unnamed:
        yield _unnamed(ahead[:most], ahead[0].projection, unit)
    elif ahead and not near:
        first = ahead[0]
        assert first.projection is not None
        yield f"{_reaches(first)} beyond {unit} {step(first.projection.reach)}, if it goes on"
    if not passed and not ahead:
        yield "no limit to reach" if layer.limits and not layer.by_tail else "its slowest mode does not move"


def _unnamed(limits: Sequence[Limit], first: Crossing, unit: str) -> str:
    """Return why no step is named for the limits ahead, and before which they are not reached."""
    if first.unnamed is Unnamed.RATE_ENDED:
        return "no step is named for any limit: its learning rate is 0"
    bounds = []
    for limit in limits:
        before = limit.projection.not_before if limit.projection else None
        bounds.append(f"{_reaches(limit)} not before {unit} {step(first.reach if before is None else before)}")
        if before is None:
            break
    slows = first.unnamed is Unnamed.SLOWS
    why, unless = ("it slows", "it speeds up") if slows else ("its learning rate falls", "that rises")
    return f"no step is named because {why}: {', '.join(bounds)}, unless {unless} again"


def _reaches(limit: Limit) -> str:
    return {
        "context": "τ outgrows the context",
        "boundary": "it crosses the boundary",
    }.get(limit.name, f"in {limit.name} its decay rounds to 1")


def _reached(limit: Limit) -> str:
    return {"context": "τ exceeds the context", "boundary": "it is past the boundary"}.get(limit.name, _reaches(limit))


def _when(crossing: Crossing) -> str:
    """Return `12,000 (8,000 to 19,000)`; ends of the interval past the reach are marked."""
    at, earliest = step(crossing.at), step(crossing.earliest)
    latest = step(crossing.latest) if crossing.latest is not None else f"beyond {step(crossing.reach)}"
    return at if at == earliest == latest else f"{at} ({earliest} to {latest})"


def _pace(slope: Slope, unit: str, *, down: bool) -> str:
    """Return the time in which the rate halves or doubles, with its interval."""
    sign = -1 if down else 1
    times = sorted(math.log(2) / (sign * s) if sign * s > 0 else math.inf for s in (slope.low, slope.value, slope.high))
    fast, middle, slow = (step(time) if math.isfinite(time) else "never" for time in times)
    said = f"{middle} {unit}{'s' * (middle != '1')}"
    return said if fast == middle == slow else f"{said} ({fast} to {slow})"


def step(value: float | None) -> str:
    """Return a train step with three digits.

    >>> step(10_234.5), step(0.1234), step(123_456_789.0)
    ('10,200', '0.123', '123M')
    """
    if value is None:
        return "–"
    if abs(value) >= 1e7:
        return steps(value)
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _doubt(layer: LayerHistory, run: RunComparison, *, brief: bool) -> str:
    """Return why the layer has no verdict; in brief, without the null model that was not rejected."""
    trend = layer.trend
    assert trend is not None
    if trend.points < FEWEST:
        return f"{plural(trend.points, 'checkpoint')} {'is' if trend.points == 1 else 'are'} too few to tell a trend"
    if trend.p <= 0.05:
        return f"among {len(run.layers)} layers chance alone gives one like this (p = {trend.p:.2g} by itself)"
    chance = _percent(trend.p)
    if brief:
        return f"chance alone moves a layer as far in up to {chance} of runs"
    reasons = {
        trend.p_rank: f"noise without a trend is as well ordered in {chance} of runs",
        trend.p_walk: f"a random walk without a drift goes as far in {chance} of runs",
        trend.p_correlated: f"correlated steps without a drift go as far in up to {chance} of runs",
        trend.p_modes: "of many modes one is the slowest by chance, and the modes that were slowest at first did not "
        f"change alike (p = {chance})",
    }
    return reasons[trend.p]


def reach_note(run: RunComparison) -> str:
    """Return what projections assume, and how far they go."""
    last, span = run.checkpoints[-1].step, run.checkpoints[-1].step - run.checkpoints[0].step
    moving = [layer for layer in run.layers if any(limit.projection for limit in layer.limits)]
    known = all(layer.schedule for layer in moving)
    learning = "the learning rate, over which they are drawn, stays what it is" if known else "the learning rate stays"
    return (
        f"projections assume that the trend goes on and {learning}, and end {REACH:.0f} runs ahead, at "
        f"{step(last + REACH * span)}"
    )
