"""SSM304: projections or convolutions that steer the memory are quantised or packed.

Formula. A tensor that a selective family computes its decays, B or C with (dt_proj, x_proj, in_proj, gates, conv1d:
those of `compare --strict`) has an integer, float8, float4 or block type, or is stored as codes with scales beside them
(bitsandbytes, GPTQ, AWQ, compressed-tensors, GGUF). A warning for a convolution, a note for the others.

Why it hurts. The decay of a token is softplus of a projection of it, so rounding the projection moves every token's
decay. The nominal point, read from A and Δ's bias alone, cannot show it. A depthwise convolution has four weights a
channel, whose rounding errors do not average out as those of a row of thousands do.

What to do. Exclude conv1d, dt_proj and x_proj from quantisation (modules_to_not_convert and the like); they are under a
hundredth of the model. Then compare the two models' outputs on long text.

Example. llama.cpp's converter (https://github.com/ggml-org/llama.cpp) keeps ssm_conv1d, ssm_a, ssm_d and Δ's bias in 32
bits, whatever type it gives the rest of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.families.packed import packed_with
from ssmdiag.rules.interface import Limits, Observation, Rule, are, page
from ssmdiag.rules.quantised_recurrence import is_quantised

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer

CONVOLUTION = "convolution"
CONTENTS = frozenset({"query", "key", "value", "receptance", "write strength", "write gate"})
"""Roles of weights that no decay depends on, where the memory is a matrix."""


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    read = {name for numbers in evidence.layers for name in numbers.tensors}
    unread = {id(layer) for layer, _ in evidence.unread}
    for layer in evidence.recognition.layers:
        if id(layer) in unread or layer.family.steering is None:
            continue  # SSM303 reports layers that cannot be read
        packed = {weight: dtype for weight, dtype in _packed(layer).items() if layer.full_name(weight) not in read}
        convolutions = [weight for weight in packed if _is_convolution(layer, weight)]
        projections = [weight for weight in packed if weight not in convolutions]
        if convolutions:
            why = "four taps a channel have no average to hide rounding in"
            yield _observation(layer, convolutions, packed, why)
        if projections:
            why = "the decays of single tokens are not known, only those at the gates' bias"
            if _of_contents(layer, projections):
                why = "what is written and read is rounded, no weight of its decays is"
            seen = _observation(layer, projections, packed, why)
            yield replace(seen, severity="note", advice="compare it with the checkpoint it came from on real text.")


def _observation(layer: Layer, weights: list[str], packed: dict[str, str], why: str) -> Observation:
    return Observation(
        f"{are(weights)} quantised or packed ({packed[weights[0]]}): {why}",
        count=len(weights),
        value=float(len(weights)),
        threshold=0.0,
        tensor=layer.full_name(weights[0]),
        layer=layer.path,
    )


def _packed(layer: Layer) -> dict[str, str]:
    """Return local name → stored type of each quantised or packed weight that steers the layer."""
    assert layer.family.steering is not None
    found: dict[str, str] = {}
    for steering in layer.family.steering(layer):
        stored = layer.beside(steering.tensor)
        parts = (*((stored,) if stored is not None else ()), *packed_with(layer, steering.tensor))
        if codes := [part.dtype for part in parts if is_quantised(part.dtype)]:
            found[steering.tensor] = codes[0]
    return found


def _of_contents(layer: Layer, weights: list[str]) -> bool:
    """Whether weights make only what a matrix memory holds and is asked for; mLSTM's gates read that too."""
    assert layer.family.steering is not None
    roles = {one.role for one in layer.family.steering(layer) if one.tensor in weights}
    return "matrix memory" in layer.family.traits and layer.family.name != "mlstm" and roles <= CONTENTS


def _is_convolution(layer: Layer, weight: str) -> bool:
    assert layer.family.steering is not None
    return any(CONVOLUTION in one.role for one in layer.family.steering(layer) if one.tensor == weight)


RULE = Rule(
    code="SSM304",
    name="packed-projection",
    severity="warning",
    summary="projections or convolutions that steer the memory are quantised",
    looks_at="checkpoint",
    examine=examine,
    advice="leave conv1d out when quantising: it is smaller than its scales save.",
    **page(__doc__),
)
