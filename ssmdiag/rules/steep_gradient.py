"""SSM105: slow modes at which the loss is far too steep in their weight.

Formula. |∂λ̄/∂w|/(1 − |λ̄|)² over the slowest 1 % of modes, P1 (arXiv 2311.14495, Theorem 3.6) in discrete form: τ |∂
log r/∂w|, τ = 1/r in steps. It is τ under exp, at most τ under softplus and sigmoid, τ²Δ under direct, 2√(τ − 1/2)
under best, 1 under heavy-tail. Where the context T is known, it is multiplied by the share that T steps see, 1 − (1 +
T/τ) e^{−T/τ}.

Why it hurts. The loss moves with a weight at most in proportion to this number. Where it is large for the slow modes
and small for the rest, one learning rate cannot suit both: a step that trains the fast modes throws the slow ones
across the boundary or far back, and the loss explodes.

What to do. Give the recurrence a smaller learning rate than the rest, clip its gradient separately, or reparametrise:
`ssmdiag retrain --param best` compares the maps on the same seeds. Selective models get a note: their time constants
move with the input, and this is their value at the gates' bias.

Example. state-spaces/mamba PR 962 (https://github.com/state-spaces/mamba/pull/962): Mamba-3's A goes from softplus to
heavy-tail after the loss of a 2B model exploded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.recurrence.maps import find_map
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence.modal import RecurrentWeight

STEEPEST_RELATIVE = 2.0
"""Largest |f′|/f of any map with bounded S (best, far from 0): the scale is at most twice the time constant."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    weight = next(iter(evidence.weights("rate")), None)
    if weight is None or "fixed decay" in evidence.layer.family.traits or _gentle(evidence, weight, limits["scale"]):
        return
    rates = evidence.recurrence.rate
    decaying = rates.where((rates > 0) & (rates < math.inf), math.inf).flatten()
    slowest = decaying.topk(math.ceil(limits["slowest"] * len(decaying)), largest=False)
    kept = slowest.values < math.inf
    rate, where = slowest.values[kept], slowest.indices[kept]
    if not len(rate):
        return
    seen = _share_in_context(rate, evidence.context)
    scale = _relative_slope(evidence, weight, rate, where) / rate * seen
    typical = float(scale.median())
    if not typical > limits["scale"]:
        return
    maps = (find_map("best"), find_map("heavy-tail"))
    others = [f"{_number((map.scale(map.inverse(rate)) * seen).median())} under {map.name}" for map in maps]
    yield Observation(
        f"the slowest {len(rate):,} of {len(decaying):,} modes, time constant {_number(1 / rate.median())} steps, "
        f"have a gradient scale of {_number(scale.median())} in {evidence.local(weight.name)} "
        f"(map {find_map(weight.map).formula}); it would be {' and '.join(others)}",
        count=int((scale > limits["scale"]).sum()),
        of=len(decaying),
        value=typical,
        threshold=limits["scale"],
        tensor=weight.name,
        severity=None if evidence.recurrence.time_invariant else "note",
    )


def _gentle(evidence: LayerEvidence, weight: RecurrentWeight, most: float) -> bool:
    """Whether the time constants alone rule out a steep gradient."""
    numbers = evidence.numbers
    if numbers.rate is None:
        return True
    bounded = not weight.discrete and find_map(weight.map).bound(1.0) < math.inf
    return bounded and numbers.rate.min > 0 and STEEPEST_RELATIVE / numbers.rate.min <= most


def _share_in_context(rate: Tensor, context: int | None) -> Tensor | float:
    """Return Σ_{t<T} t e^{−rt} over its value at T = ∞: 1 − (1 + rT) e^{−rT}, about (rT)²/2 for slow modes."""
    if context is None:
        return 1.0
    x = rate * context
    return (-(-x).expm1() - x * (-x).exp()).where(x > 1e-4, x.square() / 2)


def _relative_slope(evidence: LayerEvidence, weight: RecurrentWeight, rate: Tensor, where: Tensor) -> Tensor:
    """Return |∂ log r/∂w| at the stored weights of some rates; weights are found by the size of their rate."""
    import torch

    map = find_map(weight.map)
    values = weight.values[weight.values.isfinite()]
    magnitudes, order = map(values).sort()
    wanted = (-rate).exp() if weight.discrete else rate / _step(evidence, where)
    above = torch.searchsorted(magnitudes, wanted).clamp(max=len(magnitudes) - 1)
    below = (above - 1).clamp(min=0)
    nearest = below.where((wanted - magnitudes[below]).abs() < (magnitudes[above] - wanted).abs(), above)
    f = magnitudes[nearest]
    slope = map.scale(values[order][nearest]) * f
    return slope / -f.log() if weight.discrete else slope


def _step(evidence: LayerEvidence, where: Tensor) -> Tensor | float:
    step, shape = evidence.recurrence.step, evidence.recurrence.log_eigenvalues.shape
    return 1.0 if step is None else step.expand(shape).flatten()[where]


def _number(value: Tensor) -> str:
    size = float(value)
    return (
        f"{size:.2g}"
        if size < 10
        else f"{size:,.0f}"
        if size < 1e4
        else f"{size:.1e}".replace("e+0", "e").replace("+", "")
    )


RULE = Rule(
    code="SSM105",
    name="steep-gradient",
    severity="warning",
    summary="slow modes at which the gradient of their weight explodes",
    looks_at="layer",
    examine=examine,
    advice="lower this weight's learning rate before further training, or use the map best or heavy-tail.",
    **page(__doc__),
    thresholds={
        "scale": Threshold(1e6, "gradient scale of the slowest modes, in steps"),
        "slowest": Threshold(0.01, "share of a layer's modes that is looked at, the slowest first"),
    },
)
