"""SSM102: modes that do not decay within the context.

Formula. e^{−rT} > 0.9 over the context T, r = −Re ℓ in nats per step; whatever T, r ≤ 2⁻²⁵, where e^{−r} is 1 in
float32, and |λ̄| = 1 exactly.

Why it hurts. Such a mode is a sum of all inputs so far: it cannot tell old from new, and its state grows with the
length of the sequence: longer inputs than those of training drive the model into states it has never seen. Under an
exponential map its gradient is as small as its rate, and it does not come back by itself.

What to do. Initialise Δ so that the slowest time constants are about the context, not a multiple of it (S4: Δ_min about
1/T). Exempt the decay's weights from what pushes them there; `ssmdiag compare` shows the step at which they left. A
clamp on the rate stops the drift, but a mode on the clamp has no gradient at all (SSM103); `best` and `heavy-tail` have
neither fault. Conservative models (LinOSS-IMEX) and fixed decays (RetNet, lightning attention) do not decay by design
and are left out. Selective models are read at the gates' bias and get a note, unless the rate itself is too small for
any Δ up to 1.

Example. state-spaces/mamba PR 996 (https://github.com/state-spaces/mamba/pull/996): A_log drifts to −∞ and turns the
state into a pure accumulator.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.printable import plural
from ssmdiag.recurrence.maps import find_map
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from typing import Literal

INTEGRATES = -math.log1p(-(2.0**-25))
"""Rate in nats per step at and below which e^−r is 1 in float32: τ of 3.4e7 steps."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    numbers, context = evidence.numbers, evidence.context
    lasting = -math.log(limits["kept"]) / context if context else 0.0
    if numbers.rate is None or numbers.rate.min > max(lasting, INTEGRATES) or _by_design(evidence):
        return
    rate = evidence.recurrence.rate
    total = rate.numel()
    never = int(((rate >= 0) & (rate <= INTEGRATES)).sum())
    exactly = int((rate == 0).sum())
    lingering = int(((rate >= 0) & (rate <= lasting)).sum()) if context else 0
    if not never and lingering <= limits["share"] * total:
        return
    selective = not evidence.recurrence.time_invariant
    severity: Literal["error", "warning", "note"] = "note" if selective else "warning"
    parts = []
    if never:
        parts.append(f"{_count(never, total)} never decay{'s' * (never == 1)}: |λ̄| is 1 {_how_exactly(exactly, never)}")
        if not selective and exactly > limits["share"] * total:
            severity = "error"
        elif selective and _whatever_the_gate(evidence):
            severity = "warning"
    if lingering > max(never, limits["share"] * total):
        which = f"{lingering:,}" if parts else _count(lingering, total)
        parts.append(
            f"{which} still hold{'s' * (lingering == 1)} more than {limits['kept']:.3g} of their state after all "
            f"{context:,} steps of context"
        )
    yield Observation(
        "; ".join(parts) + (", with the gates at their bias" if selective else ""),
        count=max(never, lingering),
        of=total,
        value=max(never, lingering) / total,
        threshold=limits["share"] if lingering > limits["share"] * total else 0.0,
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
        severity=severity,
    )


def _count(count: int, total: int) -> str:
    return f"{count:,} of {plural(total, 'mode')}"


def _how_exactly(exactly: int, never: int) -> str:
    some = f", of {exactly:,} exactly" if exactly else ""
    return "exactly" if exactly == never else f"in float32{some}"


def _by_design(evidence: LayerEvidence) -> bool:
    """Whether nothing decays by design: fixed decays, oscillators that conserve energy."""
    chosen = {assumption.option: assumption.value for assumption in evidence.recurrence.assumptions}
    family = evidence.layer.family
    return "fixed decay" in family.traits or (family.name == "linoss" and chosen.get("discretization") == "imex")


def _whatever_the_gate(evidence: LayerEvidence) -> bool:
    """Whether some rate per unit time is so small that no step Δ up to 1 makes it decay."""
    return bool(evidence.weights("step")) and any(
        bool((find_map(weight.map)(weight.values) <= INTEGRATES).any())
        for weight in evidence.weights("rate")
        if not weight.discrete
    )


RULE = Rule(
    code="SSM102",
    name="no-decay",
    severity="warning",
    summary="modes that hold their state over the whole context, or for ever",
    looks_at="layer",
    examine=examine,
    advice="start from shorter time constants, or train on under a map whose gradient still reaches these modes.",
    **page(__doc__),
    thresholds={
        "kept": Threshold(0.9, "share of its state that a mode still holds after the whole context"),
        "share": Threshold(0.5, "share of a layer's modes that hold it, above which the layer is reported"),
    },
)
