"""SSM301: rates and steps stored with fewer bits than float32.

Formula. max and median over the modes of S(w, β) with β half a unit in the last place of the stored dtype at w: the
relative error of the time constant that rounding may have made (P1, arXiv 2311.14495, Definition 3.4). For A_log in
bfloat16 e^β − 1: 0.8 % at |A_log| in [2, 4), 1.6 % in [4, 8).

Why it hurts. The error is the same sign at every step and adds up over the context: 1 % of a time constant is 1 % of
the exponent. In further 16-bit training, a weight also stops moving once an optimiser step is less than half a unit in
its last place. Storing the decay itself is far worse: in bfloat16 every λ̄ above 0.998 is 1.

What to do. Exempt A_log, dt_bias and the like from casts (`_keep_in_fp32_modules` in transformers, a float32 holder
under FSDP mixed precision) and write them in float32. What was rounded is lost: convert again from the checkpoint that
has it. An error where the decay itself is stored, or where time constants move by more than a tenth.

Example. vllm-project/vllm PR 37810 (https://github.com/vllm-project/vllm/pull/37810): A_log of Qwen3-Next was not kept
in float32, which matters for long prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from ssmdiag.recurrence.modal import RecurrentWeight

SIXTEEN_BITS = ("bfloat16", "float16", "complex32")
"""SSM303 covers eight bits."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    from ssmdiag.stability.precision import worst_and_median_error

    weights = [w for w in evidence.recurrence.weights if w.dtype in SIXTEEN_BITS and w.role != "frequency"]
    errors = {weight.name: worst_and_median_error(weight, weight.dtype) for weight in weights}
    known = {name: error for name, error in errors.items() if error is not None}
    worst = max((error for error, _ in known.values()), default=0.0)
    if worst < limits["least"]:
        return
    decays = [weight for weight in weights if weight.discrete]
    yield Observation(
        _message(weights, {evidence.local(name): error for name, error in known.items()}),
        count=sum(weight.values.numel() for weight in weights),
        value=worst,
        threshold=limits["least"],
        tensor=decays[0].name if decays else max(known, key=lambda name: known[name]),
        severity="error" if decays or worst > limits["error"] else None,
        advice="store the decay's logarithm in float32, not the decay." if decays else None,
    )


def _message(weights: Sequence[RecurrentWeight], errors: dict[str, tuple[float, float]]) -> str:
    dtypes = " and ".join(dict.fromkeys(weight.dtype for weight in weights))
    what = " and ".join(errors) + (" are" if len(errors) > 1 else " is")
    held = ", the decay itself" if any(weight.discrete for weight in weights) else ""
    worst, middle = (" and ".join(map(_per_cent, column)) for column in zip(*errors.values(), strict=True))
    moved = f"rounding may have moved time constants by up to {worst} % (median {middle} %)"
    return f"{what} stored as {dtypes}{held}: {moved}"


def _per_cent(share: float) -> str:
    return f"{100 * share:.2g}" if share >= 1e-6 else "0"


RULE = Rule(
    code="SSM301",
    name="low-precision-weight",
    severity="warning",
    summary="rates or steps stored with fewer bits than float32",
    looks_at="layer",
    examine=examine,
    advice="keep these tensors in float32 through training, casting and conversion; they are a tiny part of the file.",
    **page(__doc__),
    thresholds={
        "least": Threshold(1e-4, "relative error of a time constant below which nothing is said"),
        "error": Threshold(0.1, "relative error of a time constant above which it is an error"),
    },
)
