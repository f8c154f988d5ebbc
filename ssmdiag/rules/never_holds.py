"""SSM601: a layer that lost some of its state at every token it was shown.

Formula. Σ over tokens t and channels c of [exp(−Δ(t)[c] r_c) ≥ 0.99] < share, with r_c the rate of the channel's
slowest mode: the share of tokens that leave the state of a channel as it is, as `ssmdiag probe` observed it.

Why it hurts. A selective layer keeps what it has read by closing its gate on what it need not remember (arXiv
2312.00752, section 3.5.2). One whose gate never closes forgets at a pace that no input slows: its memory is as short as
it was observed, on any text like it.

What to do. Look whether the layers around it hold: a model needs some fast layers, and not all layers fast. If none
does, start from a smaller Δ (dt_min, dt_max) or a smaller A, and train on texts that need what is far back.

Example. DeciMamba (https://arxiv.org/abs/2406.14528): how far a trained Mamba's layers reach is set by the sum of their
Δ, and falls behind the text as it grows.
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
        if layer.hold < limits["share"]:
            lasts = f"{'at least ' * layer.at_least}{layer.longest:,.3g}"
            yield Observation(
                f"of {probe.tokens:,} tokens {_share(layer.hold)} left a channel as it was, to a hundredth; "
                f"99 % of its half-lives are under {lasts} steps",
                count=layer.channels,
                of=layer.channels,
                value=layer.hold,
                threshold=limits["share"],
                layer=layer.name,
            )


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share else "none"


RULE = Rule(
    code="SSM601",
    name="never-holds",
    severity="note",
    summary="no token leaves a layer's state as it is, as a probe observed it",
    looks_at="probe",
    examine=examine,
    lacks=lacks_probe,
    advice="look whether other layers hold; if none does, start from a smaller Δ or train on longer texts.",
    **page(__doc__),
    thresholds={
        "share": Threshold(0.001, "share of tokens, over channels, that lose a hundredth of the state at most")
    },
    worse="lower",
)
