"""SSM207: memory capacity that lies beyond the context.

Formula. Σ_{τ<T} MF(τ) < share · N, where MF(τ) is how well a linear readout of the state rebuilds the input τ steps ago
and Σ_τ MF(τ) = N over all lags (P2, arXiv 2510.00563).

Why it hurts. Length costs accuracy: the N units of memory of a channel are spread over the lags it reaches. Those spent
on lags beyond every sequence are missing at the lags within it.

What to do. Scale the range of Δ: `ssmdiag capacity --layer N --for-length T` gives the range in closed form. Harmless
where the model is to run on longer sequences than the context stated here.

Example. S4D starts with time constants of up to 2,000 steps (https://github.com/state-spaces/s4, dt_min = 0.001): on
sequences of 64 steps four fifths of a layer's memory lie beyond them, as in examples/s4d-digits.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_context, page


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    own, context = evidence.numbers.capacity, evidence.context
    if own is None or own.capacity is None or own.modes is None or context is None or not own.modes.median:
        return
    share = own.capacity.median / own.modes.median
    # Fewer lags than modes can never hold all of it.
    reachable = min(1.0, context / own.modes.median)
    if share < limits["share"] * reachable:
        held = f"; half of it within {own.held_half.median:,.0f} steps" if own.held_half else ""
        yield Observation(
            f"{own.capacity.median:.3g} of {own.modes.median:.0f} units of memory lie within the context of "
            f"{context:,} in the median channel{held}; the rest is for inputs further back",
            count=own.channels,
            of=own.channels,
            value=share,
            threshold=limits["share"],
            tensor=next((weight.name for weight in evidence.weights("step")), None),
        )


RULE = Rule(
    code="SSM207",
    name="memory-beyond-context",
    severity="note",
    summary="most of the memory capacity lies beyond the context",
    looks_at="layer",
    examine=examine,
    lacks=lacks_context,
    advice="a larger step Δ brings it into the context: `ssmdiag capacity --for-length`.",
    **page(__doc__),
    thresholds={"share": Threshold(0.5, "memory within the context, as a share of all of it")},
    worse="lower",
)
