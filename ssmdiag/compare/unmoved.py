"""Where no rate moved in a run: did the tensors change that steer its layers by the input? Compares its two ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.compare.layer_history import LayerHistory
from ssmdiag.compare.steering import compare_steering
from ssmdiag.errors import SsmdiagError
from ssmdiag.families.interface import Family
from ssmdiag.families.recognition import recognise
from ssmdiag.guard import guard


def find_steering_changed(
    ends: Sequence[str | Path],
    layers: Sequence[LayerHistory],
    assume: Mapping[str, str] | None,
    families: Sequence[Family] | None,
    device: str,
) -> dict[str, tuple[str, ...]] | None:
    """Return what `RunComparison.steering_changed` holds, from the first and the last checkpoint."""
    if any(layer.slowest is None or layer.slowest.change or layer.last.moved for layer in layers):
        return None
    if all(layer.last.time_invariant for layer in layers):
        return None
    changed: dict[str, tuple[str, ...]] = {}
    whole = True
    try:
        first, last = (recognise(read_checkpoint(p), assume=assume, families=families, device=device) for p in ends)
        for one, other in zip(first.layers, last.layers, strict=False):
            with guard(other.path, "comparing what steers it"):
                found = compare_steering(one, other, tolerance=0.0)
            if found and found.differing:
                changed[other.path] = tuple(d.b.removeprefix(f"{other.path}.") for d in found.differing)
            whole = whole and not (found and found.unseen)
    except SsmdiagError:
        return None
    return changed if whole or changed else None
