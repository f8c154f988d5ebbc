"""SSM403: Δ is a fresh random draw, in all layers or some, although the rest of the model was trained.

Formula. Fresh: log softplus(b) uniform in [log Δ_min, log Δ_max], with hard ends. Moved by a normal σ, a share
2σ/(√(2π) log(Δ_max/Δ_min)) of the values is outside. σ is assumed to be `movement` times the spread that the norms have
gained; in our own trainings b moved one to three times as far as the norms. Fires where that predicts at least
`expected` values outside, none is, and Kolmogorov–Smirnov does not reject the uniform distribution; the probability of
that by chance is e^−expected. The values of all layers are pooled. Where some have left the range, layers with no value
outside are compared with the share outside in the others.

Why it hurts. The step decides how long each channel remembers. After a random redraw every channel writes and reads
what it did before, but holds it for another time: the text turns to filler, and no shape or dtype is wrong.

What to do. Load the file again and compare the tensors in memory with those on disk, name by name, dt_bias and out_proj
above all. Where the bias really was left out of training (frozen, or in no parameter group), ignore this rule in the
configuration.

Example. transformers PR 45591 (https://github.com/huggingface/transformers/pull/45591): Nemotron-H's dt_bias and
out_proj were overwritten with fresh random values after loading.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.families.initialisations import frozen_on_purpose, usual_step
from ssmdiag.families.layer import Layer
from ssmdiag.recurrence.maps import softplus
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page
from ssmdiag.rules.uniformity import uniform_p_value

if TYPE_CHECKING:
    from torch import Tensor

BIASES = (
    *("dt_bias", "dt_proj.bias", "dt_proj_b.bias", "dt_proj.0.bias"),
    *("dt_projs_bias", "dt_proj_bias", "Dense_2.bias", "ssm_dt.bias"),
)
"""Local names of the bias of Δ behind a softplus, in Mamba and similar families."""
BY_CHANCE = 12.0
"""−log of the probability below which a number of layers is not chance."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    signs = evidence.training
    if not signs.trained or not signs.distance:
        return
    draws = [draw for layer in evidence.recognition.layers for draw in _draws(layer)]
    if any(draw.outside for draw in draws):
        yield from _some_layers(draws, signs.distance, limits)
    elif draws:
        yield from _all_layers(draws, signs.distance, limits)


def _some_layers(draws: list[_Draw], distance: float, limits: Limits) -> Iterator[Observation]:
    """Look for layers with no value outside the range where the share of all values outside predicts many."""
    values, outside = sum(len(draw.position) for draw in draws), sum(draw.outside for draw in draws)
    inside = [draw for draw in draws if not draw.outside]
    for draw in inside:
        own = len(draw.position)
        share = outside / (values - own)
        if share * own >= limits["expected"] and uniform_p_value(draw.position) >= limits["p_value"]:
            yield Observation(
                f"the bias of Δ ({own:,} values) is {_still(draw, uniform_p_value(draw.position))}, while "
                f"{100 * share:.2g} % of the other layers' values have left that range",
                count=own,
                of=own,
                value=share * own,
                threshold=limits["expected"],
                tensor=draw.name,
                layer=draw.layer,
            )
    few = [draw for draw in inside if outside / (values - len(draw.position)) * len(draw.position) < limits["expected"]]
    if few and _too_many(few, draws, outside / values):
        yield from _all_layers(few, distance, limits, f"{len(few)} of {len(draws)} layers")


def _too_many(inside: list[_Draw], draws: list[_Draw], share: float) -> bool:
    """Whether so many layers with no value outside are not chance, even if each moved half as far as all did.

    The number of such layers is a sum of independent trials: Chernoff's bound, e^{−n KL(k/n, mean chance)}.
    """
    seen = len(inside) / len(draws)
    chance = sum(math.exp(len(draw.position) * math.log1p(-share / 2)) for draw in draws) / len(draws)
    if seen <= chance:
        return False
    divergence = seen * math.log(seen / chance) + (1 - seen) * math.log((1 - seen) / (1 - chance))
    return len(draws) * divergence > BY_CHANCE


def _all_layers(draws: list[_Draw], distance: float, limits: Limits, which: str = "") -> Iterator[Observation]:
    """Look at all layers together: the norms say how far they should have moved."""
    import torch

    values = sum(len(draw.position) for draw in draws)
    moved = limits["movement"] * distance
    expected = sum(draw.position.numel() * _share_outside(moved, draw) for draw in draws)
    chance = uniform_p_value(torch.cat([draw.position for draw in draws]))
    if expected < limits["expected"] or chance < limits["p_value"]:
        return
    which = which or f"all {len({draw.layer for draw in draws})} layers"
    yield Observation(
        f"the bias of Δ in {which} ({values:,} values) is {_still(draws[0], chance)}; moved a third as far as the "
        f"norms, about {expected:,.0f} would lie outside",
        count=values,
        of=values,
        value=expected,
        threshold=limits["expected"],
        tensor=draws[0].name,
    )


def _still(draw: _Draw, chance: float) -> str:
    low, high = (f"{bound:g}" for bound in draw.bounds)
    return f"still a log-uniform draw from [{low}, {high}] (Kolmogorov–Smirnov p = {chance:.2g}, none outside)"


class _Draw(NamedTuple):
    """One bias of Δ, as places in the range it may have been drawn from."""

    layer: str
    name: str
    position: Tensor
    """(log Δ − log Δ_min)/(log Δ_max − log Δ_min): uniform in [0, 1] if fresh."""
    bounds: tuple[float, float]
    width: float
    """log Δ_max − log Δ_min in nats."""
    slack: tuple[float, float]
    """What rounding to the stored dtype may add below and above, in nats."""
    outside: int


def _draws(layer: Layer) -> Iterator[_Draw]:
    """Yield the biases of Δ of one layer that are numbers."""
    if "fixed decay" in layer.family.traits or frozen_on_purpose(layer, "step"):
        return
    for local, raw in layer.readable(BIASES):
        low, high = usual_step(layer)
        width = math.log(high / low)
        position = (softplus(raw.flatten()).log() - math.log(low)) / width
        dtype = layer.stored(local).dtype
        below, above = (_rounding(math.log(math.expm1(end)), dtype) for end in (low, high))
        outside = int(((position < -below / width) | (position > 1 + above / width) | position.isnan()).sum())
        yield _Draw(layer.path, layer.names[local], position, (low, high), width, (below, above), outside)


def _rounding(value: float, dtype: str) -> float:
    """Return half the distance to the next number of a stored dtype; twice it for 32 bits, where it costs nothing."""
    bits = {"bfloat16": 8, "float16": 11}.get(dtype, 22)
    return math.ldexp(1.0, math.frexp(value)[1] - 1 - bits)


def _share_outside(moved: float, draw: _Draw) -> float:
    """Return which share would leave the range by more than rounding if every value moved by N(0, moved²), in nats."""
    reaches = [slack / moved for slack in draw.slack]
    beyond = [math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) - x * math.erfc(x / math.sqrt(2)) / 2 for x in reaches]
    return moved / draw.width * sum(beyond)


RULE = Rule(
    code="SSM403",
    name="redrawn-step",
    severity="warning",
    summary="the bias of Δ is a fresh random draw in a model that looks trained",
    looks_at="checkpoint",
    examine=examine,
    advice="compare the tensor with the file it was converted or loaded from: an initialiser may have run after it.",
    **page(__doc__),
    thresholds={
        "movement": Threshold(1 / 3, "how far b moves for each unit by which the norms have spread"),
        "expected": Threshold(14.0, "expected values outside the range from which their absence is evidence"),
        "p_value": Threshold(0.001, "p-value below which the values are not a uniform draw"),
    },
)
