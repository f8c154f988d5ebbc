"""SSM604: a layer whose output a state in bfloat16 would spoil.

Formula. error = (Σ_t (ŷ_t − y_t)² / Σ_t y_t²)^½ > limit in the median channel, where y is the layer's own recurrence
stepped in float64 over a real text, and ŷ the same with the state rounded to bfloat16 after every step, as `ssmdiag
probe` observed it.

Why it hurts. A state that holds for long adds up little at a time: what a step adds beside a state 256 times as large
is rounded away in bfloat16. Where weights and activations survive 16 bits, such a state need not, and the error grows
with the text.

What to do. Keep the state in float32 when generating: the reference kernels do, and the state is small beside the
weights. If it has to be narrow, float16 has three digits more; an 8-bit state needs a scale per channel at the least
(`ssmdiag probe` shows each).

Example. Quamba (https://arxiv.org/abs/2410.13229): what quantisation harms most in a Mamba is the selective scan, by
its inputs and its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_probe, page


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    probe = evidence.probe
    if probe is None:
        return
    for layer in probe.layers:
        error, worst = layer.bf16_error, layer.bf16_worst
        if error is not None and worst is not None and error > limits["error"]:
            yield Observation(
                f"with its state in bfloat16 its output is off by {error:.2g} of itself in the median channel, by "
                f"{worst:.2g} in the worst",
                count=layer.channels,
                of=layer.channels,
                value=error,
                threshold=limits["error"],
                layer=layer.name,
            )


def lacks_rounded_state(evidence: CheckpointEvidence) -> str | None:
    """Say that no layer was stepped with its state rounded."""
    if evidence.probe and evidence.probe.layers and all(one.bf16_error is None for one in evidence.probe.layers):
        return "the probe stepped no layer with a rounded state"
    return lacks_probe(evidence)


RULE = Rule(
    code="SSM604",
    name="rounded-state",
    severity="note",
    summary="a state in bfloat16 would spoil a layer's output, as a probe observed it",
    looks_at="probe",
    examine=examine,
    lacks=lacks_rounded_state,
    advice="keep the state in float32 when generating; weights may be narrower.",
    **page(__doc__),
    thresholds={"error": Threshold(0.02, "relative error of the output in the median channel")},
)
