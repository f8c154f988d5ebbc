"""SSM401: NaN or infinity in a recurrent layer."""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.rules.interface import LayerEvidence, Limits, Observation, Rule


def examine(evidence: LayerEvidence, limits: Limits) -> Iterator[Observation]:
    layer = evidence.layer
    branch = evidence.recurrence.layer
    for local, name in layer.names.items():
        # A module with several scans is examined once for each; its tensors are reported with the first.
        if branch != layer.path and name not in evidence.recurrence.tensors:
            continue
        stored = layer.stored(local)
        if not stored.dtype.startswith(("float", "bfloat", "complex")) or stored.nbytes > MOST_BYTES:
            continue
        values = stored.load()
        broken = int((~values.isfinite()).sum()) if not stored.dtype.startswith("float8") else 0
        if broken:
            yield Observation(
                f"{name}: {broken:,} of {values.numel():,} values {'is' if broken == 1 else 'are'} NaN or infinite",
                count=broken,
                of=values.numel(),
                value=float(broken),
                threshold=0.0,
                tensor=name,
            )


MOST_BYTES = 1_000_000
"""Larger tensors (input projections) are not read for this: a check reads the recurrence, not the model."""

RULE = Rule(
    code="SSM401",
    name="non-finite",
    severity="error",
    summary="NaN or infinity in a recurrent layer's tensors",
    looks_at="layer",
    examine=examine,
    advice="find the last checkpoint without it; the step after that is where to look.",
    formula="any value w of a recurrent layer's tensors with w ∉ ℝ.",
    why="One such weight makes every output that its channel reaches NaN, and the next gradient step spreads it.",
    fix=(
        "Resume from the last finite checkpoint. Where the file has just been converted or loaded, look for an "
        "initialiser that runs a second time on loaded weights, and for tensors that were never filled."
    ),
    example=(
        "fla-org/flash-linear-attention PR 754 (https://github.com/fla-org/flash-linear-attention/pull/754): a second "
        "initialisation took the logarithm of a loaded A_log."
    ),
)
