"""SSM407: the skip D holds no trained values.

Formula. y = C h + D x. |D| above the threshold (published models start at 1 or N(0, 1), and training moves D by a few
units), or D = 0 throughout while norms beside it are no longer constant. NaN and infinity are SSM401.

Why it hurts. D passes the input straight to the output. Garbage of 10¹⁷ drowns everything else or overflows to NaN;
zeros cut the direct path that every layer above was trained with.

What to do. Write D from the original checkpoint. In online reloads, compare every tensor after the reload with what was
sent: one that no loader claims keeps the memory it was allocated in.

Example. prime-rl PR 2714 (https://github.com/PrimeIntellect-ai/prime-rl/pull/2714): an online reload dropped mixer.D of
every Mamba layer, which then read NaN, infinity or values around 1e17.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ssmdiag.assessment.evidence import CheckpointEvidence, LayerEvidence
from ssmdiag.checkpoint.names import join
from ssmdiag.printable import plural
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

SKIP = re.compile(r"D|Ds|D_b|D\.\d+|ssm_k_D|ssm_d|omega|residual_weight")
"""D under its local names; Mega calls it ω."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    if evidence.position:
        return
    whole = evidence.whole
    for name in _skips(whole, evidence.layer.path):
        if (values := whole.load(name)) is None:
            continue
        size = values.double().abs()
        local = name.removeprefix(f"{evidence.layer.path}.")
        finite = size[size.isfinite()]
        if huge := int((finite > limits["largest"]).sum()):
            yield Observation(
                f"{huge:,} of {plural(size.numel(), 'value')} of {local} {'is' if huge == 1 else 'are'} beyond "
                f"{limits['largest']:g}, the largest is "
                f"{float(finite.max()):.2g}: uninitialised memory looks like this",
                count=huge,
                of=size.numel(),
                value=float(finite.max()),
                threshold=limits["largest"],
                tensor=name,
            )
        elif size.numel() > 1 and not bool((size != 0).any()) and whole.training.trained:
            yield Observation(
                f"all {size.numel():,} values of {local} are 0, though {whole.training.evidence}",
                count=size.numel(),
                of=size.numel(),
                value=0.0,
                threshold=0.0,
                tensor=name,
                severity="warning",
                advice="check whether the converter or a sparse save dropped it; no published model starts D at 0.",
            )


def _skips(evidence: CheckpointEvidence, path: str) -> list[str]:
    """Return the skips of a layer; those of S4 are one or two levels above, beside the kernel."""
    prefix = f"{path}." if path else ""
    found = [name for name in evidence.names_by_layer[path] if SKIP.fullmatch(name.removeprefix(prefix))]
    while path.endswith("kernel") and not found:
        path = path.rpartition(".")[0]
        beside = join(path, "D")
        found = [beside] if beside in evidence.checkpoint else []
    return found


RULE = Rule(
    code="SSM407",
    name="skip-out-of-range",
    severity="error",
    summary="the skip D is huge, or all zero in a trained model",
    looks_at="layer",
    examine=examine,
    advice="load the file again and compare D with its source: it was never written.",
    **page(__doc__),
    thresholds={"largest": Threshold(1e4, "largest plausible |D|; it multiplies normalised inputs")},
)
