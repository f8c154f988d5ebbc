"""SSM603: answers that use far less of the past than was there.

Formula. N(0.01) < share × M: with the N last tokens of the past, 99 % of its effect on the answers is kept (KL of the
next-token distributions, or squared difference; by cutting, as `ssmdiag probe` measures it), M is the most that was
tested, and the upper end of the 95 % interval of N is below the limit too.

Why it hurts. Tokens before the last N cost time and memory and change next to nothing: the model would answer the same
without them. Retention does not show it, for a state that is held need not be read.

What to do. Probe it on text that needs the past (`--compare`): prose predicts itself from a few words. If it uses no
more there, shorten the context, or train on longer texts and look whether the loss falls with context
(`loss_by_context`).

Example. RULER (https://arxiv.org/abs/2404.06654): most models make use of a part of the context they are said to have,
and the recurrent ones tried there of less than Transformers of their size.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_probe, page


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    probe = evidence.probe
    if probe is None or not probe.tested or probe.reach is None or probe.reach_at_most is None:
        return
    most = limits["share"] * probe.tested
    if probe.reach_at_most < most:
        yield Observation(
            f"the answers keep 99 % of the past's effect with {probe.reach:,} tokens of it, of {probe.tested:,} tested",
            count=1,
            value=probe.reach / probe.tested,
            threshold=limits["share"],
        )


def lacks_use(evidence: CheckpointEvidence) -> str | None:
    """Say that it is not known how far back the answers use their past."""
    if evidence.probe is None:
        return lacks_probe(evidence)
    return None if evidence.probe.tested else "the probe did not measure the use of the past"


RULE = Rule(
    code="SSM603",
    name="unused-context",
    severity="warning",
    summary="answers use far less of the past than there is, as a probe measured it",
    looks_at="probe",
    examine=examine,
    lacks=lacks_use,
    advice="probe it on text that needs the past; where it uses no more, shorten the context or train on longer texts.",
    **page(__doc__),
    thresholds={
        "share": Threshold(1 / 16, "tokens that keep 99 % of the past's effect, as a share of the most tested")
    },
    worse="lower",
)
