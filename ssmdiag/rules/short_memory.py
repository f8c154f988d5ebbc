"""SSM201: all layers together remember far less than the context.

Formula. Σ over layers of the longest horizon H < share × T. H is the lag after which 1 % of the energy of a channel's
kernel is left (of the retention, where the input decides B and C); T is the context, from config.json or --length.
Stacked layers reach at most as far as their horizons together. Models with attention are left out; selective ones are
read with their gates at the bias, and the finding is a note.

Why it hurts. The start of the context cannot influence its end, whatever the model has learnt: tokens beyond the reach
cost time and change nothing, and scores stop improving with longer inputs.

What to do. Retrain with dt_min below 1/T (S4 and its descendants), an LRU ring with 1 − r_max under 1/T, or larger
forget biases. Training alone hardly lengthens memory (arXiv 2510.00563): start long.

Example. state-spaces/mamba issue 7 (https://github.com/state-spaces/mamba/issues/7): models trained at 2k are good to
about 3k tokens and then get worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.checkpoint.attention import QUERY
from ssmdiag.rules.interface import Limits, Observation, Rule, Threshold, lacks_context, page

if TYPE_CHECKING:
    from ssmdiag.assessment.spectrum import LayerDiagnosis

TO_ONE_PERCENT = math.log(100) / 2
"""Time constants until a mode has spent 99 % of its energy."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    layers = [layer for layer in evidence.layers if not layer.unstable and not layer.marginal]
    whole = len(layers) == len(evidence.layers) and not evidence.unread
    if evidence.context is None or not layers or not whole or _is_not_all(evidence):
        return
    reaches = [_horizon(layer) for layer in layers]
    together = sum(reaches)
    share = together / evidence.context
    if not share < limits["share"]:
        return
    exact = all(layer.time_invariant for layer in layers)
    nominal = "" if exact else " with their gates at rest"
    farthest = max(reaches)
    yield Observation(
        f"the longest horizons of all {len(layers)} layers together are {together:,.0f} steps{nominal}, the context "
        f"is {evidence.context:,}; no layer reaches beyond {farthest:,.0f}"
        if len(layers) > 1
        else f"the only recurrent layer reaches {farthest:,.0f} steps{nominal}, the context is {evidence.context:,}",
        count=len(layers),
        of=len(layers),
        value=share,
        threshold=limits["share"],
        severity=None if exact else "note",
        advice=None if exact else "its gates can hold more than their bias says: test the model with a distant fact.",
    )


def _horizon(layer: LayerDiagnosis) -> float:
    """Return the longest horizon of a layer's channels; that of its slowest mode where horizons were not computed.

    A layer with horizons computed but none found is zero, not finite or cancelled: its reach is unknown.
    """
    if layer.horizon is not None:
        return layer.horizon.max
    if layer.decay is not None:
        return math.inf
    return TO_ONE_PERCENT * layer.time_constant.max if layer.time_constant else 0.0


def _is_not_all(evidence: CheckpointEvidence) -> bool:
    """Whether the rates are not all that carries memory: attention, gates without bias, or a state fed back."""
    traits = {trait for layer in evidence.recognition.layers for trait in layer.family.traits}
    own = {name for names in evidence.names_by_layer.values() for name in names}
    beside = any(QUERY.search(name) for name in evidence.checkpoint if name not in own)
    return beside or not traits.isdisjoint({"attention inside", "feedback", "gates without bias"})


RULE = Rule(
    code="SSM201",
    name="short-memory",
    severity="warning",
    summary="all layers together remember far less than the context",
    looks_at="checkpoint",
    examine=examine,
    lacks=lacks_context,
    advice="shorten the context, or retrain from longer time scales (a smaller dt_min, rates spread over decades).",
    **page(__doc__),
    thresholds={"share": Threshold(0.1, "sum of the layers' longest horizons, as a share of the context")},
    worse="lower",
)
