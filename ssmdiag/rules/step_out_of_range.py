"""SSM404: the step Δ was never initialised, or by another formula.

Formula. Δ = softplus(b) (Mamba and the like) or exp(b) (S4, S5, DSS). Fires where all Δ of a layer are equal, or all
lie on one side of [Δ_min, Δ_max] and the standard deviation of log Δ is below the threshold. A log-uniform start in
[0.001, 0.1] (arXiv 2206.12037, 2312.00752) spreads log Δ by 1.33; training moves channels apart, not together, so a
narrow distribution outside was never inside. Δ_min and Δ_max are those of the settings, where given.

Why it hurts. With dt_bias = 0 the step is 0.69 and with dt_bias = 1 it is 1.31, up to a thousand times the usual one.
Every mode then forgets within a step or two wherever the input does not hold the gate shut, and all channels share that
one time scale.

What to do. Set b = Δ + log(1 − exp(−Δ)) with Δ log-uniform in [0.001, 0.1] before training, and check that nothing
overwrites the bias afterwards: wrappers that initialise every Linear, `reset_parameters` on a meta device, or a mixer
that is used outside its model class. In a loaded file, compare the tensor with its source.

Example. transformers issue 43717 (https://github.com/huggingface/transformers/issues/43717): dt_bias is all ones if the
mixer is used alone. Models fresh from transformers 5.24 begin there too, unlike their makers' own: Bamba, Falcon-H1 and
Granite hybrids at 1, Jamba at 0. athms/mad-lab issue 3 (https://github.com/athms/mad-lab/issues/3): a wrapper
initialised dt_proj a second time. The Mamba inside typeseg 0.2.7 kept Δ between 0.63 and 0.77.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import LayerEvidence
from ssmdiag.families.initialisations import log_uniform_step, usual_step
from ssmdiag.recurrence.maps import MAPS
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, page

if TYPE_CHECKING:
    from torch import Tensor

FRESH = "nothing looks trained yet: set Δ before training; some models of transformers start like this."
"""Advice where the file shows that training is still to come."""
FEWEST = 4
"""Fewer steps than this are not judged."""


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    weight = log_uniform_step(evidence.recurrence)
    if weight is None or weight.values.numel() < FEWEST or not bool(weight.values.isfinite().all()):
        return
    raw = weight.values.flatten()
    step = MAPS[weight.map](raw)
    spread = float(step.log().std(correction=0))
    low, high = usual_step(evidence.layer)
    constant = bool((raw == raw[0]).all())
    outside = float(step.min()) > high or float(step.max()) < low
    if "constant step" in evidence.layer.family.traits and not (constant and evidence.whole.training.trained):
        return
    if not constant and not (outside and spread < limits["spread"]):
        return
    yield Observation(
        _sentence(evidence.local(weight.name), weight.map, raw, step, constant, (low, high) if outside else None),
        count=raw.numel(),
        of=raw.numel(),
        value=spread,
        threshold=limits["spread"],
        tensor=weight.name,
        advice=FRESH if evidence.whole.training.trained is False else None,
    )


def _sentence(
    name: str, map_name: str, raw: Tensor, step: Tensor, constant: bool, outside: tuple[float, float] | None
) -> str:
    middle, typical = float(raw.median()), float(step.median())
    function = "exp" if map_name == "exp" else "softplus"
    if constant:
        said = f"all {raw.numel():,} values of {name} are {middle:.3g}: {function}({middle:.3g}) = {typical:.2g}"
    else:
        about = "0" if abs(middle) < 0.1 and function == "softplus" else f"{middle:.2g}"
        said = (
            f"{name} is centred on {about}: {function}({about}) = {typical:.2g} "
            f"({float(step.min()):.2g} to {float(step.max()):.2g} over {raw.numel():,} channels)"
        )
    if outside is None:
        return f"{said} in every channel"
    where = "above" if typical > outside[1] else "below"
    return f"{said} is {where} the usual [{outside[0]:g}, {outside[1]:g}]"


RULE = Rule(
    code="SSM404",
    name="step-out-of-range",
    severity="warning",
    summary="Δ constant, or wholly outside the range models start from",
    looks_at="layer",
    examine=examine,
    advice="was the initialisation of Δ applied? Check what the file was made from before training on.",
    **page(__doc__),
    thresholds={
        "spread": Threshold(0.5, "standard deviation of log Δ over a layer, in nats, under which Δ is one value"),
    },
    worse="lower",
)
