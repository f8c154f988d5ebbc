"""SSM104: time constants that a cast of the weight would change beyond recognition.

Formula. S(w, β) = sup over |w̃ − w| ≤ β of |f(w)/f(w̃) − 1|, the relative memory perturbation (P1, arXiv 2311.14495,
Definition 3.4, with the integral done); β is half a unit in the last place of the dtype at w, for int8 max|w|/254.
Under exp S = e^β − 1; under direct β/(|w| − β), infinite at |w| ≤ β.

Why it hurts. Rounding moves every weight by up to β. Under a direct map, or where λ̄ itself is stored, the slowest
modes are nearest to the boundary: a β that is harmless to all others multiplies their time constants or makes them
grow. It is the discrete form of what P1 calls the curse of memory.

What to do. Keep rate and step weights in float32 (they are under a hundredth of the model), quantise with a scale per
channel, or reparametrise: under exp, softplus, `best` and `heavy-tail` no weight reaches the boundary, and S is bounded
for all w. A finding about a dtype other than the stored one is a note.

Example. state-spaces/mamba issue 133 (https://github.com/state-spaces/mamba/issues/133): a comment cites work in which,
of all tensors, A suffers most from quantisation and breaks under 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.printable import plural
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence.modal import RecurrentWeight

CASTS = ("bfloat16", "float16", "int8")
"""What users cast whole state dicts to; int8 with one scale per tensor."""


@dataclass(frozen=True)
class _Change:
    """What one dtype does to the time constants of one weight."""

    weight: RecurrentWeight
    dtype: str
    count: int
    """Values whose time constant may change by the factor, or that may reach the boundary."""
    crossing: int
    """Those that may be on or past the boundary."""
    worst: float
    """Largest relative change of a time constant; infinite where some weight reaches the boundary."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    from ssmdiag.stability.precision import is_coarse

    if "fixed decay" in evidence.layer.family.traits:
        return
    most = limits["factor"] - 1
    stored, casts = [], []
    for weight in (*evidence.weights("rate"), *evidence.weights("step")):
        if is_coarse(weight.dtype):
            stored.append(_change(weight, weight.dtype, most))
        elif not weight.dtype.startswith("complex"):  # nothing casts complex tensors to 16 or 8 bits
            casts += [_change(weight, dtype, most) for dtype in CASTS]
    for changes, is_stored in ((stored, True), (casts, False)):
        if changed := [change for change in changes if change is not None]:
            worst = max(changed, key=lambda change: (change.worst, change.count))
            yield _observation(evidence.local(worst.weight.name), worst, changed, limits, is_stored)


def _change(weight: RecurrentWeight, dtype: str, most: float) -> _Change | None:
    """Return what a dtype does to a weight's time constants; None where it changes none by much."""
    from ssmdiag.stability.precision import ROUNDED_LIKE, error_bound, time_constant_error

    if dtype not in ROUNDED_LIKE or error_bound(weight, dtype) < most:
        return None
    change = time_constant_error(weight, dtype)
    # A weight on or past the boundary belongs to SSM101 or SSM102; its change says nothing about rounding.
    change = change.where(_decays(weight) & ~change.isnan(), 0.0)
    count = int((change >= most).sum())
    return _Change(weight, dtype, count, int(change.isinf().sum()), float(change.max())) if count else None


def _decays(weight: RecurrentWeight) -> Tensor:
    from ssmdiag.recurrence.maps import find_map

    magnitude = find_map(weight.map)(weight.values)
    return (magnitude > 0) & (magnitude < 1) if weight.discrete else magnitude > 0


def _observation(name: str, worst: _Change, changes: list[_Change], limits: Limits, stored: bool) -> Observation:
    weight, count, total = worst.weight, worst.count, worst.weight.values.numel()
    others = [change.dtype for change in changes if change.weight is weight and change.dtype != worst.dtype]
    effect = (
        "reach the stability boundary"
        if worst.crossing == count
        else f"change their time constants by more than a factor of {limits['factor']:g}"
        + (f", {worst.crossing:,} of them past the stability boundary" if worst.crossing else "")
    )
    values = f"{count:,} of {plural(total, 'value')} of {name}"
    if stored:
        message = f"{name} is stored as {weight.dtype}, whose rounding can make {count:,} of {total:,} {effect}"
    else:
        scale = " with one scale for the tensor" if worst.dtype == "int8" else ""
        message = f"a cast to {worst.dtype}{scale} can make {values} {effect}"
        message += f"; so can one to {' or '.join(others)}" if others else ""
    return Observation(
        message,
        count=count,
        of=total,
        value=math.inf if worst.crossing else worst.worst,
        threshold=limits["factor"] - 1,
        tensor=weight.name,
        severity=None if stored else "note",
        advice=None
        if stored
        else "leave this tensor in float32 when casting or quantising, or reparametrise it first.",
    )


RULE = Rule(
    code="SSM104",
    name="fragile-under-rounding",
    severity="error",
    summary="weights whose rounding multiplies a time constant or reaches the boundary",
    looks_at="layer",
    examine=examine,
    advice="store this tensor in float32, from a checkpoint that still has it.",
    **page(__doc__),
    thresholds={"factor": Threshold(2.0, "factor by which rounding may multiply a time constant")},
)
