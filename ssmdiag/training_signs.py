"""Whether a checkpoint looks trained, from tensors that start at a known constant.

Norm weights start at 1 (or 0), their biases at 0, the skip D at 1: after some steps of an optimiser they are
no longer constant. What the recurrence looks like is then a question of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.families.recognition import Recognition

NORM = re.compile(r"(?:^|[._])(?:\w*norm\w*|ln_?\w*|layernorm\w*)[._](?:weight|scale|bias)$", re.IGNORECASE)
MOST_TENSORS = 24
"""Norms looked at, spread over the model: enough to tell, few enough to read."""
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class TrainingSigns:
    """What the tensors beside the recurrence say of training."""

    trained: bool | None
    """None: nothing in the file tells."""
    evidence: str
    """In words, for a finding: `norms.0.weight is no longer constant`."""
    moved: int = 0
    """How many of the tensors looked at have left their constant."""
    still: int = 0
    """How many are still at it."""


def read_training_signs(checkpoint: Checkpoint, recognition: Recognition) -> TrainingSigns:
    """Return what norms, skips and the file's own train step say."""
    names = [
        name
        for name, stored in checkpoint.items()
        if (NORM.search(name) or name.rpartition(".")[2] == "D")
        and stored.dtype.startswith(("float16", "float32", "float64", "bfloat"))
        and 1 < prod(stored.shape) <= MOST_VALUES
    ]
    stride = max(1, len(names) // MOST_TENSORS)
    moved: list[str] = []
    still: list[str] = []
    for name in names[::stride]:
        values = checkpoint[name].load().double().flatten()
        constant = bool((values == values[0]).all()) and float(values[0]) in (0.0, 1.0)
        (still if constant else moved).append(name)
    if moved:
        return TrainingSigns(True, f"{moved[0]} has left its initial constant", len(moved), len(still))
    if still:
        return TrainingSigns(False, f"{still[0]} is still at its initial constant", 0, len(still))
    if checkpoint.train_step:
        return TrainingSigns(True, f"the file says step {checkpoint.train_step:,}")
    return TrainingSigns(None, "no norm or skip to tell by")
