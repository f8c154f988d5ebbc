"""SSM203: most of a layer's channels forget within one step.

Formula. A channel is memoryless where its slowest mode has a half-life ln 2 / r under one step. Fires where their share
of the layer reaches the threshold; for a state shared by all inputs (S5, LRU) modes are counted, and of a convolution
channels whose taps past the first are all 0. Selective layers are read with their gates at the bias and the finding is
a note. RWKV-4 is left out: up to 54 % of its channels start like that by design.

Why it hurts. Such a channel multiplies by a constant, at extra cost. A layer of them is a pointwise map: everything
that the model knows of the past must come from other layers.

What to do. Check Δ against the initialisation (SSM404) and A against log 1 … log N; a Δ of 1 instead of 0.01 is enough.
In a model that trained into this state, give the recurrence its own small learning rate and no weight decay.

Example. jrz97619761/test-model-thing issue 3 (https://github.com/jrz97619761/test-model-thing/issues/3): gates start at
0.5 and the trained decays stay at about one symbol; an opening bracket 20 bytes back has no effect.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

ONE_STEP = math.log(2) * (1 + 1e-9)
"""Rate in nats per step at which half is lost in one step; a gate of exactly 1/2 is not past it."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence = evidence.recurrence
    if recurrence.taps is not None:
        yield from _empty_convolution(recurrence.taps, limits)
        return
    if "fast channels" in evidence.layer.family.traits or not recurrence.weights:
        return
    many_inputs = recurrence.layout == "many inputs"
    slowest = recurrence.rate.flatten() if many_inputs else recurrence.rate.amin(1)
    total = slowest.numel()
    fast = int((slowest > ONE_STEP).sum())
    if total < 2 or fast < limits["share"] * total:
        return
    what = "modes" if many_inputs else "channels"
    rest = "" if recurrence.time_invariant else ", gates at rest"
    yield Observation(
        f"{fast:,} of {total:,} {what} lose more than half of their state in one step{rest}: they hold no memory",
        count=fast,
        of=total,
        value=fast / total,
        threshold=limits["share"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
        # How far the input opens the gates is not in the weights: for selective layers this is a note.
        severity=None if recurrence.time_invariant else "note",
    )


def _empty_convolution(taps: Tensor, limits: Limits) -> Iterator[Observation]:
    """Look for kernels, (input, output, lag), that are 0 wherever the past would come in."""
    if taps.shape[2] < 2:
        return
    empty = (taps[:, :, 1:] == 0).all(2).all(0)
    total, count = empty.numel(), int(empty.sum())
    if total < 2 or count < limits["share"] * total:
        return
    nothing = bool((taps == 0).all())
    so = ": nothing reaches their output" if nothing else " past the first: they hold no memory"
    yield Observation(
        f"{count:,} of {total:,} channels have a convolution that is 0 at every tap{so}",
        count=count,
        of=total,
        value=count / total,
        threshold=limits["share"],
        advice="check whether a converter or a sparse save dropped this weight.",
    )


RULE = Rule(
    code="SSM203",
    name="memoryless-channels",
    severity="warning",
    summary="most of a layer's channels forget within one step",
    looks_at="layer",
    examine=examine,
    advice="check Δ and A of this layer: is Δ in its usual range, and was A scaled, or its logarithm applied twice?",
    **page(__doc__),
    thresholds={"share": Threshold(0.75, "share of a layer's channels that forget within a step")},
)
