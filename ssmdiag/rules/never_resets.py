"""SSM602: a layer that forgot hardly anything within the texts it was shown.

Formula. Σ over tokens t and channels c of [exp(−Δ(t)[c] r_c) ≤ ½] = 0, with r_c the rate of the channel's slowest mode,
and more than `censored` of all half-lives longer than the text before their position, as `ssmdiag probe` observed them.

Why it hurts. A state that is never cleared adds up all it has read. Within the length of training that may be what the
task needs; past it the state leaves the range that the layers after it know, and what is new drowns in what is old.

What to do. Try the model on texts of twice the length: if the loss rises there, train on texts longer than the state
can hold, or on documents packed one after another, so that forgetting is learnt.

Example. Stuffed Mamba (https://arxiv.org/abs/2410.07145): Mamba-2 trained on texts too short for its state never
learns to forget, and collapses past the length of training.
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
        if layer.reset == 0 and layer.censored > limits["censored"]:
            yield Observation(
                f"none of {probe.tokens:,} tokens reset a channel, and {layer.censored:.0%} of its half-lives are "
                f"longer than what had been read of the {probe.length:,} tokens of a text",
                count=layer.channels,
                of=layer.channels,
                value=layer.censored,
                threshold=limits["censored"],
                layer=layer.name,
            )


RULE = Rule(
    code="SSM602",
    name="never-resets",
    severity="note",
    summary="a layer forgets hardly anything within a text, as a probe observed it",
    looks_at="probe",
    examine=examine,
    lacks=lacks_probe,
    advice="try the model on texts of twice the length: what is never cleared adds up.",
    **page(__doc__),
    thresholds={"censored": Threshold(0.5, "share of half-lives that are longer than the text before their position")},
)
