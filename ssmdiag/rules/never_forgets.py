"""SSM202: a whole layer forgets nothing within the context.

Formula. mean of K_t² over T/2 ≤ t < T, divided by its mean over 0 ≤ t < T, at least the threshold in every channel: 1
for a flat kernel, 0.95 for e^{−rt} with rT = 0.1. Where B and C depend on the input, K is the retention, mean |λ̄|^t
with the gates at their bias, and the finding is a note unless |A| is so small that even Δ = 1 forgets as little. RetNet
and Lightning attention have such layers by design and are left out.

Why it hurts. The state is a running sum: it grows with the length of the input, overflows 16-bit arithmetic, and what
comes after a longer context than in training is unlike anything the next layer has seen.

What to do. Go back to a checkpoint before the rates fell to zero. A map whose gradient does not vanish there, such as
`best` (arXiv 2311.14495), comes back by itself; a clamp on A stops the drift but has no gradient.

Example. state-spaces/mamba PR 996 (https://github.com/state-spaces/mamba/pull/996): A_log drifts to −∞ over hundreds of
epochs, the layer becomes a pure accumulator and fp16 overflows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_context, page

SHORTEST = 8
"""Steps of context below which a flat kernel and a slow one look alike."""

CONSERVATIVE = "imex"
"""LinOSS's discretisation without any decay, |λ̄| = 1 by design."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence, context = evidence.recurrence, evidence.context
    fixed = "fixed decay" in evidence.layer.family.traits or not recurrence.weights
    if context is None or fixed or any(assumption.value == CONSERVATIVE for assumption in recurrence.assumptions):
        return
    kept = _kept_by_kernels(evidence) if evidence.memory else _kept_by_modes(evidence)
    if kept is None or not kept >= limits["kept"]:
        return
    even_open = _even_with_open_gates(evidence, limits["kept"])
    selective = not recurrence.time_invariant
    at = "" if not selective else " even at Δ = 1" if even_open else " with the gates at their bias"
    yield Observation(
        f"no channel forgets within the context of {context:,}{at}: over its second half every kernel has at least "
        f"{100 * kept:.3g} % of its mean power",
        count=recurrence.channels,
        of=recurrence.channels,
        value=kept,
        threshold=limits["kept"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
        severity="note" if selective and not even_open else None,
    )


def _kept_by_kernels(evidence: LayerEvidence) -> float | None:
    """Return the least ratio, over channels, of a kernel's mean power late in the context to that over all of it."""
    memory = evidence.memory
    if memory is None or memory.context < SHORTEST:
        return None
    width = memory.edges.diff().double()
    late = (memory.edges[:-1] >= memory.context // 2).double()
    power = memory.mean_square
    power = power[power.isfinite().all(1) & (power > 0).any(1)]
    if not len(power):
        return None
    ratio = (power @ (width * late) / (width * late).sum()) / (power @ width / width.sum())
    return float(ratio.min())


def _kept_by_modes(evidence: LayerEvidence) -> float | None:
    """Return the same for a kernel e^{−rt} with r the rate of the fastest mode, where no kernel was computed."""
    rate, context = evidence.recurrence.rate, evidence.context
    if context is None or context < SHORTEST or not bool((rate >= 0).all()):
        return None
    spent = 2 * float(rate.max()) * context
    if spent == 0:
        return 1.0
    return (math.exp(-spent / 2) - math.exp(-spent)) / (spent / 2) / (-math.expm1(-spent) / spent)


def _even_with_open_gates(evidence: LayerEvidence, kept: float) -> bool:
    """Whether A alone is so small that Δ = 1, far above any usual step, forgets as little."""
    recurrence = evidence.recurrence
    log_rates = [weight.values for weight in evidence.weights("rate") if weight.map == "exp"]
    if recurrence.time_invariant or recurrence.step is None or len(log_rates) != 1 or evidence.context is None:
        return False
    # The power of e^{−rt} late in the context, over its mean, falls as 1 − rT/2 at first.
    return float(log_rates[0].max().exp()) * evidence.context / 2 < 1 - kept


RULE = Rule(
    code="SSM202",
    name="never-forgets",
    severity="warning",
    summary="a whole layer never forgets within the context",
    looks_at="layer",
    examine=examine,
    lacks=lacks_context,
    advice="trace its rates over training (`ssmdiag compare`); give the recurrence a smaller learning rate.",
    **page(__doc__),
    thresholds={"kept": Threshold(0.95, "power of the kernel late in the context, over its mean power")},
)
