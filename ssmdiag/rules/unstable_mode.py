"""SSM101: modes that grow.

Formula. |λ̄| = e^{Re ℓ} > 1, where h_k = λ̄ h_{k−1} + B̄ x_k (P1, arXiv 2311.14495, §2).

Why it hurts. The state grows as |λ̄|^k until it overflows: the loss turns to NaN on inputs longer than those seen in
training, or at once. A map that keeps Re λ < 0 (exp, softplus, best) excludes this; a direct weight does not.

What to do. Resume from the last checkpoint without such modes under a stable reparameterisation, or lower the learning
rate of the recurrence. `ssmdiag compare` on the run's checkpoints shows when the modes crossed.

Example. OpenGVLab/Vision-RWKV issue 21 (https://github.com/OpenGVLab/Vision-RWKV/issues/21): exp(w) in place of
exp(−exp(w)) leaves the decay unbounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.printable import plural
from ssmdiag.rules.interface import Limits, Observation, Rule, page

NOT_CONVERTED = (
    "convert the model again: ssm_a holds A_log, where llama.cpp reads −exp(A_log). Training did nothing wrong."
)


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    numbers = evidence.numbers
    if numbers.unstable:
        assert numbers.spectral_radius is not None
        total = numbers.channels * numbers.modes
        grow = "grows" if numbers.unstable == 1 else "grow"
        fastest = "" if numbers.unstable == 1 else "the fastest "
        yield Observation(
            f"{numbers.unstable:,} of {plural(total, 'mode')} {grow} with every step, {fastest}by {_factor(evidence)}",
            count=numbers.unstable,
            of=total,
            value=numbers.spectral_radius,
            threshold=1.0,
            tensor=next((weight.name for weight in evidence.weights("rate")), None),
            advice=NOT_CONVERTED if _holds_its_logarithm(evidence) else None,
        )


def _holds_its_logarithm(evidence: LayerEvidence) -> bool:
    """Whether a tensor that should hold A, such as GGUF's ssm_a, holds log(−A): no value is negative."""
    stored = [weight for weight in evidence.weights("rate") if evidence.local(weight.name) == "ssm_a"]
    return bool(stored) and all(bool((weight.values >= 0).all()) for weight in stored)


def _factor(evidence: LayerEvidence) -> str:
    """Return the largest factor a step, or its excess over 1 where six digits would print 1."""
    radius = evidence.numbers.spectral_radius
    if radius is not None and radius > 1 + 5e-6:
        return f"a factor of {radius:.6g}"
    rate = evidence.recurrence.rate
    return f"{-float(rate[rate.isfinite()].min()):.3g} of its size"


RULE = Rule(
    code="SSM101",
    name="unstable-mode",
    severity="error",
    summary="a mode grows with every step",
    looks_at="layer",
    origin=1.0,
    examine=examine,
    advice="go back to a checkpoint before it crossed, and use a map that cannot cross the boundary.",
    **page(__doc__),
)
