"""SSM204: a layer forgets exponentially, and the context is many half-lives long.

Formula. T·r/ln 2 > threshold, with T the context and r the rate of the layer's slowest mode. Fires where the summed
energy of the layer's kernels decays exponentially (not as a power) over the lags above the noise; under another law or
none, where every kernel also ends below float32's rounding of its peak within the context. After 24 half-lives 2⁻²⁴ is
left, float32's rounding of the present. Time-invariant layers only; a note, because a model may need some local layers.

Why it hurts. Stably trained exponential memory cannot follow targets that decay more slowly: the curse of memory (arXiv
2305.19190). The start of the context does not reach the output of this layer at all.

What to do. Start with slower modes (dt_min/10, or an LRU ring closer to 1), spread time scales over decades so that the
layer decays as a power, or train under a stable reparameterisation (arXiv 2311.14495).

Example. state-spaces/s4 trains Path-X with dt_min = 0.0001 instead of 0.001, since 16,384 steps are too many half-lives
of the default (https://github.com/state-spaces/s4/blob/main/configs/experiment/lra/s4-pathx.yaml).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_context, page

if TYPE_CHECKING:
    from ssmdiag.assessment.memory import LayerMemory


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    recurrence, decay, context = evidence.recurrence, evidence.numbers.decay, evidence.context
    half_life = evidence.numbers.half_life
    if not recurrence.time_invariant or context is None or decay is None or half_life is None:
        return
    # Half-lives of a dense state are those of its eigenvalues, which transient growth can outlast.
    exponential = decay.whole.law.value == "exponential"
    if not (exponential or _lost(evidence.memory)) or half_life.max <= 0:
        return
    passed = context / half_life.max
    if passed <= limits["half_lives"]:
        return
    how = "exponentially" if exponential else "exponentially in the end"
    yield Observation(
        f"forgets {how}, and the context of {context:,} is {passed:,.0f} half-lives of its slowest mode "
        f"({half_life.max:.3g} steps): nothing of its start is left in float32",
        count=recurrence.channels,
        of=recurrence.channels,
        value=passed,
        threshold=limits["half_lives"],
        tensor=next((weight.name for weight in evidence.weights("rate")), None),
    )


def _lost(memory: LayerMemory | None) -> bool:
    """Whether every kernel that was examined ends below float32's rounding of its peak."""
    return memory is not None and bool((memory.mean_square[:, -1] <= memory.noise[:, -1]).all())


RULE = Rule(
    code="SSM204",
    name="exponential-memory",
    severity="note",
    summary="exponential forgetting, with a context of many half-lives",
    looks_at="layer",
    examine=examine,
    lacks=lacks_context,
    advice="other layers must carry distant inputs; `ssmdiag retrain --param best` lets this layer do it too.",
    **page(__doc__),
    thresholds={"half_lives": Threshold(24.0, "context over the longest half-life of the layer")},
)
