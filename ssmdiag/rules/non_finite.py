"""SSM401: NaN or infinity in a recurrent layer.

Formula. any value w of a recurrent layer's tensors with w ∉ ℝ.

Why it hurts. One such weight makes every output that its channel reaches NaN, and the next gradient step spreads it.

What to do. Resume from the last finite checkpoint. Where the file has just been converted or loaded, look for an
initialiser that runs a second time on loaded weights, and for tensors that were never filled.

Example. fla-org/flash-linear-attention PR 754 (https://github.com/fla-org/flash-linear-attention/pull/754): a second
initialisation took the logarithm of a loaded A_log.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.assessment.evidence import MOST_BYTES, MOST_OWN_BYTES, PLAIN, LayerEvidence
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import plural
from ssmdiag.rules.interface import Limits, Observation, Rule, page


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    if evidence.position:  # a module with several scans is examined once, with its first
        return
    layer, whole = evidence.layer, evidence.whole
    own = set(layer.names.values())
    for name in whole.names_by_layer[layer.path]:
        stored = whole.checkpoint[name]
        most = MOST_OWN_BYTES if name in own else MOST_BYTES
        if not stored.dtype.startswith(PLAIN) or stored.nbytes > most:
            continue
        local = name.removeprefix(f"{layer.path}.")
        try:
            values = stored.load()
        except CheckpointError as error:
            yield Observation(f"{local} cannot be read: {error.seen}", count=1, tensor=name, advice=error.advice)
            continue
        if broken := int((~values.isfinite()).sum()):
            which = f"{broken:,} of {plural(values.numel(), 'value')}"
            yield Observation(
                f"{local}: {which} {'is' if broken == 1 else 'are'} NaN or infinite",
                count=broken,
                of=values.numel(),
                value=float(broken),
                threshold=0.0,
                tensor=name,
            )


RULE = Rule(
    code="SSM401",
    name="non-finite",
    severity="error",
    summary="NaN or infinity in a recurrent layer's tensors",
    looks_at="layer",
    examine=examine,
    advice="find the last checkpoint without it and look at the step after it.",
    **page(__doc__),
)
