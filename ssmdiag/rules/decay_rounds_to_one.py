"""SSM302: decays that are exactly 1 in the 16 bits they are computed in.

Formula. 1 − e^{−r} ≤ half the spacing of numbers below 1: 2⁻⁹ in bfloat16 (τ > 511 steps), 2⁻¹² in float16 (τ > 4,095).
Modes that hold 90 % of their state over the whole context anyway are not counted.

Why it hurts. A decay that is 1 never forgets: the mode turns from a memory of τ steps into the sum of everything since
the first token. Short tests do not show it, outputs drift only once the context is longer than τ.

What to do. Upcast before the exponential (`-torch.exp(A_log.float())`), keep Δ A in float32 up to the scan, or scan in
the log domain. The rule reports where the weight of the rate is stored in 16 bits, or where the settings ask for 16
bits and the reference code follows them (RG-LRU, MiniMax's lightning attention). It is a note where the reference code
is known to upcast, and an error where most decays of a layer are lost.

Example. osaurus-ai/vmlx-swift PR 433 (https://github.com/osaurus-ai/vmlx-swift/pull/433): decays cast to bf16, so that
all above about 0.998 never forget; a short test did not see it, one of 4,096 steps did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from typing import Literal

IN_MODEL_DTYPE = {
    "rg_lru": "exp(−8 r softplus(Λ)) in transformers' recurrent_gemma",
    "lightning_attention": "exp(−slope_rate) in transformers' minimax",
}
"""Families whose reference code takes the exponential in the dtype of the model (transformers 5.23)."""

DTYPES = ("bfloat16", "float16")


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    from ssmdiag.stability.precision import HALF_SPACING_BELOW_ONE, longest_time_constant, rounds_to_one

    numbers, recurrence = evidence.numbers, evidence.recurrence
    dtype, source = _computed_in(evidence)
    if dtype is None or numbers.rate is None or numbers.rate.min > 2 * HALF_SPACING_BELOW_ONE[dtype]:
        return
    rate = recurrence.rate
    lost = rounds_to_one(rate, dtype)
    if evidence.context:  # a mode that holds its state over the whole context loses nothing by a decay of 1
        lost &= rate * evidence.context > -math.log(limits["kept"])
    count, total = int(lost.sum()), rate.numel()
    if count <= limits["share"] * total:
        return
    severity: Literal["error", "warning", "note"] = "error" if count > limits["most"] * total else "warning"
    if "float32 decay" in evidence.layer.family.traits:
        severity, source = "note", f"{source}; the reference code computes in float32, other runtimes may not"
    elif evidence.weights("frequency"):
        # −exp(w) + 1j v is complex64 even where w and v are bfloat16: there is no complex bfloat16.
        severity, source = "note", f"{source}; torch and JAX compute complex decays in float32, other runtimes may not"
    point = "" if recurrence.time_invariant else " with the gates at their bias"
    verb = "s" if count == 1 else ""
    yield Observation(
        f"{count:,} of {total:,} decays round{verb} to exactly 1 in {dtype}{point}, those with time constants above "
        f"{longest_time_constant(dtype):,.0f} steps ({source})",
        count=count,
        of=total,
        value=count / total,
        threshold=limits["share"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
        severity=severity,
    )


def _computed_in(evidence: LayerEvidence) -> tuple[str | None, str]:
    """Return the 16-bit dtype that the decay is probably computed in, and the evidence in words."""
    code = IN_MODEL_DTYPE.get(evidence.recurrence.family)
    stored = next((weight for weight in evidence.weights("rate") if weight.dtype in DTYPES), None)
    if stored is not None:
        return stored.dtype, f"{evidence.local(stored.name)} is stored in it" + (
            f", and {code} follows it" if code else ""
        )
    if code is None or not evidence.weights("rate"):  # decays that are not in the file are computed by other code
        return None, ""
    for setting in ("dtype", "torch_dtype"):
        if (dtype := str(evidence.layer.setting(setting, default="")).removeprefix("torch.")) in DTYPES:
            return dtype, f"{setting} in the settings, which {code} follows"
    return None, ""


RULE = Rule(
    code="SSM302",
    name="decay-rounds-to-one",
    severity="warning",
    summary="decays that become exactly 1 in the 16 bits they are computed in",
    looks_at="layer",
    examine=examine,
    advice="compute log-decays and their exponential in float32, and store their weights in float32.",
    **page(__doc__),
    thresholds={
        "share": Threshold(0.0, "share of a layer's decays that round to 1, above which it is reported"),
        "most": Threshold(0.5, "share of a layer's decays that round to 1, above which it is an error"),
        "kept": Threshold(0.9, "share of its state that a mode holds over the context, above which it is left out"),
    },
)
