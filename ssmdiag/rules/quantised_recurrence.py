"""SSM303: recurrent tensors that are quantised or packed.

Formula. a tensor that the recurrence is read from has an integer dtype (int8, uint8, packed int4), or float8 or float4,
with scales beside it or without.

Why it hurts. Projections average the rounding of many weights; a decay is one weight, applied at every step, and its
error grows with the context. In eight bits float8_e4m3 moves A_log by up to a sixteenth, e^{β} − 1 of the time
constant, and an int8 grid over a tensor sends small rates to 0.

What to do. Exclude A, Δ's bias and the step's projection from quantisation (modules_to_not_convert and the like), and
convert again from the full checkpoint. ssmdiag does not undo quantisation: give it the original checkpoint.

Example. state-spaces/mamba issue 133 (https://github.com/state-spaces/mamba/issues/133): a comment cites work in which,
of all tensors, A suffers most from quantisation and breaks under 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import CheckpointEvidence
from ssmdiag.checkpoint.dtypes import is_number
from ssmdiag.errors import LayerError
from ssmdiag.families.layer import Layer
from ssmdiag.rules.interface import Limits, Observation, Rule, page

EIGHT_BITS = ("float8", "float4")


def examine(evidence: CheckpointEvidence, limits: Limits) -> Iterator[Observation]:
    unread = {id(layer): error for layer, error in evidence.unread}
    read = {name for numbers in evidence.layers for name in numbers.tensors}
    for layer in evidence.recognition.layers:
        if names := _unread(layer, unread[id(layer)]) if id(layer) in unread else _coarse(layer, read):
            yield _observation(layer, names, unread.get(id(layer)))


def _unread(layer: Layer, error: LayerError) -> list[str]:
    """Return a layer's quantised tensors, if one of them kept the layer from being read."""
    names = [name for name in layer.names.values() if is_quantised(layer.checkpoint[name].dtype)]
    return names if any(name in error.seen for name in names) else []


def _coarse(layer: Layer, read: set[str]) -> list[str]:
    """Return which tensors of a layer that was read have eight bits or fewer."""
    return [
        name for name in layer.names.values() if name in read and layer.checkpoint[name].dtype.startswith(EIGHT_BITS)
    ]


def is_quantised(dtype: str) -> bool:
    """Whether a stored dtype has eight bits or fewer, or holds codes instead of numbers."""
    return dtype.startswith(EIGHT_BITS) or not is_number(dtype)


def _observation(layer: Layer, names: list[str], error: LayerError | None) -> Observation:
    several = f" and {len(names) - 1} more of its tensors" if len(names) > 1 else ""
    dtype = layer.checkpoint[names[0]].dtype
    if error is not None:
        message = f"{names[0]}{several} {'are' if several else 'is'} quantised ({dtype}), so its memory cannot be read"
    else:
        message = f"{names[0]}{several} {'have' if several else 'has'} eight bits or fewer ({dtype})"
    return Observation(
        message,
        count=len(names),
        of=len(layer.names),
        value=float(len(names)),
        threshold=0.0,
        tensor=names[0],
        layer=layer.path,
    )


RULE = Rule(
    code="SSM303",
    name="quantised-recurrence",
    severity="error",
    summary="quantised or packed tensors in a recurrence",
    looks_at="checkpoint",
    examine=examine,
    advice="leave the recurrence out when quantising: it is a tiny part of the model and carries all of its memory.",
    **page(__doc__),
)
