"""SSM202: a whole layer keeps everything it was ever given within the context."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.initialisations import FIXED
from ssmdiag.rules.interface import LayerEvidence, Limits, Observation, Rule, Threshold

CONSERVATIVE = "imex"
"""LinOSS's discretisation without any decay, |λ̄| = 1 by design."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence, context = evidence.recurrence, evidence.context
    if context is None or recurrence.family in FIXED or not recurrence.weights:
        return
    if any(assumption.value == CONSERVATIVE for assumption in recurrence.assumptions):
        return
    rate = recurrence.rate.amax(1)
    rate = rate[rate.isfinite()]
    if not rate.numel() or bool((rate < 0).any()):
        return
    held, certain = float(rate.max()) * context, recurrence.time_invariant
    if not certain:
        # With A that small not even an open gate, Δ = 1, forgets: then the input has no say.
        fastest = [float(weight.values.max()) for weight in evidence.weights("rate") if weight.map == "exp"]
        certain = bool(fastest) and recurrence.step is not None and math.exp(max(fastest)) * context < limits["loss"]
    if held >= limits["loss"]:
        return
    left = 100 * math.exp(-held)
    at = "" if recurrence.time_invariant else " with the gates at their bias"
    at = " even at Δ = 1" if certain and not recurrence.time_invariant else at
    total = recurrence.channels * recurrence.modes
    yield Observation(
        f"every one of {total:,} modes keeps at least {left:.3g} % of its state over the context of {context:,}{at}: "
        f"the layer adds up and never forgets",
        count=total,
        of=total,
        value=held,
        threshold=limits["loss"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
        severity=None if certain else "note",
    )


RULE = Rule(
    code="SSM202",
    name="never-forgets",
    severity="warning",
    summary="a whole layer never forgets within the context",
    looks_at="layer",
    examine=examine,
    advice="see how its rates moved over training (`ssmdiag compare`); give the recurrence a smaller learning rate.",
    formula=(
        "r·T below the threshold for the fastest mode of the layer: it still holds e^{−rT} of its state after "
        "T steps of context. Selective layers are read with their gates at the bias and the finding is a note, unless "
        "even |A|·T at Δ = 1 is below the threshold: then no input can make the layer forget. RetNet and Lightning "
        "attention have such layers by design and are left out."
    ),
    why=(
        "The state is a running sum: it grows with the length of the input, overflows 16-bit arithmetic, and what "
        "comes after a longer context than in training is unlike anything the next layer has seen."
    ),
    fix=(
        "Go back to a checkpoint before the rates fell to zero. A map whose gradient does not vanish there, such as "
        "`best` (arXiv 2311.14495), comes back by itself; a clamp on A stops the drift but has no gradient."
    ),
    example=(
        "state-spaces/mamba PR 996 (https://github.com/state-spaces/mamba/pull/996): A_log drifts to −∞ over hundreds "
        "of epochs, the layer becomes a pure accumulator and fp16 overflows."
    ),
    thresholds={"loss": Threshold(0.05, "nats that the fastest mode loses over the context; 0.05 leaves 95 %")},
    worse="lower",
)
