"""Where no rate moved in a run: did the tensors change that steer its layers by the input? Compares its two ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.location import Location
from ssmdiag.compare.layer_history import LayerHistory
from ssmdiag.compare.steering import compare_steering
from ssmdiag.compare.trend import Verdict
from ssmdiag.errors import SsmdiagError
from ssmdiag.families.recognition import Recognition
from ssmdiag.guard import guard


def find_steering_changed(
    ends: Sequence[str | Location], layers: Sequence[LayerHistory], find: Callable[[Checkpoint], Recognition]
) -> dict[str, tuple[str, ...]] | None:
    """Return what `RunComparison.steering_changed` holds, from the first and the last checkpoint.

    `find` recognises the layers of a checkpoint, as for the rest of the run.
    """
    # A layer that never decays, or holds nothing, is steady without a trend.
    moved = any(
        layer.verdict is not Verdict.STEADY if layer.slowest is None else layer.slowest.change or layer.last.moved
        for layer in layers
    )
    if moved or all(layer.last.time_invariant for layer in layers):
        return None
    changed: dict[str, tuple[str, ...]] = {}
    whole = True
    try:
        first, last = (find(read_checkpoint(path)) for path in ends)
        for one, other in zip(first.layers, last.layers, strict=False):
            with guard(other.path, "comparing what steers it"):
                found = compare_steering(one, other, tolerance=0.0)
            if found and found.differing:
                changed[other.path] = tuple(d.b.removeprefix(f"{other.path}.") for d in found.differing)
            whole = whole and not (found and found.unseen)
    except SsmdiagError:
        return None
    return changed if whole or changed else None
