"""SSM103: weights on a clamp, where the gradient is zero.

Formula. f′(w) = 0 at the stored w: relu below 0; max(−w, 1e-4) above −1e-4 (S5's clip_eigs, the Annotated S4); Re Λ
above max_real_Lambda (DSS clip); log α below clamp_min (GLA). In Mamba-2 and its like, Δ = softplus(dt_bias) outside
time_step_limit, or under time_step_min where transformers clamps to that despite the limit (zamba2, nemotron_h).

Why it hurts. A weight beyond a clamp has a gradient of exactly zero: the mode stays where it is for the rest of
training. A clamp on Δ is worse where runtimes disagree about it: transformers clamps while it reads a prompt and not in
single steps, mlx-lm has limits of its own, llama.cpp has none, so the same file is several models.

What to do. Move the weight inside by hand (initialise the mode anew), or train on under a map that is smooth up to the
boundary: exp, `best` or `heavy-tail`. For Δ, find the limits that the model was trained with, write them to
config.json, and check that the runtime in use applies them.

Example. huggingface/transformers PR 48989 (https://github.com/huggingface/transformers/pull/48989): a floor of 0.001 on
Δ that the published model does not have; without it the mean KL falls from 0.0337 to 0.0032.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.printable import plural
from ssmdiag.recurrence.maps import find_map
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from ssmdiag.recurrence.modal import RecurrentWeight


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    share = limits["share"]
    found = [clamp for clamp in _clamps(evidence, limits["beyond"]) if clamp.value is not None and clamp.value > share]
    if found:
        yield replace(max(found, key=lambda clamp: clamp.value or 0.0), threshold=share)


def _clamps(evidence: LayerEvidence, beyond: float) -> Iterator[Observation]:
    for weight in evidence.recurrence.weights:
        yield from _flat(evidence, weight)
    family = evidence.recurrence.family
    if family == "mamba2":
        yield from _step_limits(evidence, beyond)
    elif family == "gla":
        yield from _lowest_decay(evidence)
    elif family == "dss":
        yield from _highest_eigenvalue(evidence)


def _flat(evidence: LayerEvidence, weight: RecurrentWeight) -> Iterator[Observation]:
    """Yield what lies where the weight's own map does not change: f′(w) = 0."""
    map = find_map(weight.map)
    if map.bound(1.0) < math.inf and not map.low:
        return  # exp, softplus, best and similar maps are nowhere flat
    if count := int((map.scale(weight.values) == 0).sum()):
        yield _observation(evidence, weight.name, count, weight.values.numel(), f"where its map {map.formula} is flat")


def _step_limits(evidence: LayerEvidence, beyond: float) -> Iterator[Observation]:
    """Yield the heads of Mamba-2 and its descendants whose Δ transformers clamps in prefill."""
    from ssmdiag.families.mamba2 import step_limits

    step = evidence.recurrence.step
    try:
        low, high = step_limits(evidence.layer)
    except (TypeError, ValueError):
        return  # reading the layer has reported this value already
    if step is None:
        return
    outside = (step < low * (1 - beyond)) | (step > high * (1 + beyond))
    if count := int(outside.sum()):
        bounds = f"at least {low:g}" if high == math.inf else f"within [{low:g}, {high:g}]"
        heads = f"{count:,} of {plural(step.numel(), 'head')} {'has' if count == 1 else 'have'}"
        farthest = float(step[outside].min() if bool((step[outside] < low).any()) else step[outside].max())
        yield Observation(
            f"{heads} a Δ at its bias that transformers clamps to {bounds} in prefill (farthest: {farthest:.3g}): "
            "no gradient there, and single steps and other runtimes run another model",
            count=count,
            of=step.numel(),
            value=count / step.numel(),
            tensor=next((weight.name for weight in evidence.weights("step")), None),
            advice="set time_step_limit (time_step_min in zamba2 and nemotron_h) to what the model was trained with.",
        )


def _lowest_decay(evidence: LayerEvidence) -> Iterator[Observation]:
    """Yield the gates of GLA that forget faster than `clamp_min` lets them."""
    floor = evidence.layer.setting("clamp_min")
    if isinstance(floor, int | float) and floor < 0:
        held = evidence.recurrence.rate >= -floor
        weight = next(iter(evidence.weights("rate")), None)
        if weight is not None and bool(held.any()):
            yield _observation(
                evidence, weight.name, int(held.sum()), held.numel(), f"on clamp_min = {floor:g}, the lowest log-decay"
            )


def _highest_eigenvalue(evidence: LayerEvidence) -> Iterator[Observation]:
    """Yield the modes of DSS's clip versions whose Re Λ lies above the limit."""
    chosen = {assumption.option: assumption.value for assumption in evidence.recurrence.assumptions}
    if chosen.get("version", "").startswith("clip"):
        limit = float(evidence.layer.setting("max_real_Lambda", default=1e-4))
        for weight in evidence.weights("rate"):
            if count := int((weight.values > limit).sum()):
                where = f"above Re Λ = {limit:g}, where it is clamped"
                yield _observation(evidence, weight.name, count, weight.values.numel(), where)


def _observation(evidence: LayerEvidence, name: str, count: int, total: int, where: str) -> Observation:
    verb, whose = ("lies", "its") if count == 1 else ("lie", "their")
    return Observation(
        f"{count:,} of {plural(total, 'value')} of {evidence.local(name)} {verb} {where}: {whose} gradient is 0",
        count=count,
        of=total,
        value=count / total,
        tensor=name,
    )


RULE = Rule(
    code="SSM103",
    name="clamped-weight",
    severity="warning",
    summary="weights beyond a clamp, where the gradient is zero",
    looks_at="layer",
    examine=examine,
    advice="move these weights inside the clamp, or train on under a smooth map, whose gradient is nowhere zero.",
    **page(__doc__),
    thresholds={
        "share": Threshold(0.0, "share of a tensor's values beyond the clamp, above which it is reported"),
        "beyond": Threshold(0.05, "relative distance past a limit on Δ that counts; 16-bit rounding moves Δ less"),
    },
)
