"""Does the rest of the model look trained? Evidence for rules that find a part that was not.

Norms start at a constant, ones or zeros, whatever the code (RWKV scales its ones by the depth), and every
step of training moves each of their values a little: a model whose norms are no longer constant has been
trained, and their spread says how far. Without norms, Mamba's skip D, which starts at one, takes their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import TYPE_CHECKING

from ssmdiag.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ssmdiag.checkpoint import Checkpoint, StoredTensor
    from ssmdiag.families.recognition import Recognition

NORM = re.compile(
    r"(?:^|[._])(?:\w*norm\w*|[lb]n_?\w*)(?:\.\d+)?[._](?:weight|scale|bias)$|_norm_weight$", re.IGNORECASE
)
MOST_TENSORS = 24
"""Norms examined, spread over the model: enough for evidence, few enough to read."""
MOST_VALUES = 1_000_000


@dataclass(frozen=True)
class TrainingSigns:
    """What the tensors beside the recurrence say about training."""

    trained: bool | None
    """None: nothing in the file shows it."""
    evidence: str
    """In words, for a finding: `norms.0.weight is no longer constant`."""
    moved: int = 0
    """How many of the examined tensors are no longer constant."""
    still: int = 0
    """How many are still constant."""
    distance: float | None = None
    """Standard deviation within the tensors that are no longer constant, median over them: how far training went."""


def read_training_signs(checkpoint: Checkpoint, recognition: Recognition) -> TrainingSigns:
    """Return what norms, Mamba's skips and the file's own train step say."""
    if checkpoint.train_step == 0:
        return TrainingSigns(False, "the file says step 0")
    moved, still, distances = _moved(checkpoint, names_of_signs(checkpoint, recognition))
    if moved and len(moved) >= len(still):
        # A single non-constant tensor among many constant ones is a statistic of the data, not a trained norm.
        return TrainingSigns(True, f"{moved[0]} is no longer constant", len(moved), len(still), median(distances))
    if still:
        return TrainingSigns(False, f"{still[0]} is still constant", len(moved), len(still))
    if checkpoint.train_step:
        return TrainingSigns(True, f"the file says step {checkpoint.train_step:,}")
    return TrainingSigns(None, "the file has no norm or skip weights")


def names_of_signs(checkpoint: Checkpoint, recognition: Recognition) -> list[str]:
    """Return the norms that are examined, or the skips where there are none."""
    names = [name for name, stored in checkpoint.items() if NORM.search(name) and _is_small_vector(stored)]
    names = names or _skips(checkpoint, recognition)
    return names[:: max(1, len(names) // MOST_TENSORS)]


def _is_small_vector(stored: StoredTensor) -> bool:
    plain = stored.dtype.startswith(("float16", "float32", "float64", "bfloat"))
    return plain and 1 < prod(stored.shape) <= MOST_VALUES


def _skips(checkpoint: Checkpoint, recognition: Recognition) -> list[str]:
    """Return the D of every layer that has an A_log: elsewhere D starts at random."""
    names = [layer.full_name("D") for layer in recognition.layers if "A_log" in layer.names]
    return [name for name in names if name in checkpoint and _is_small_vector(checkpoint[name])]


def _moved(checkpoint: Checkpoint, names: Sequence[str]) -> tuple[list[str], list[str], list[float]]:
    """Return the tensors that are no longer constant, those that are, and the spread of the former."""
    moved, still, distances = [], [], []
    for name in names:
        try:
            values = checkpoint[name].load().double().flatten()
        except CheckpointError:  # a damaged norm is no evidence
            continue
        if bool((values == values[0]).all()):
            still.append(name)
        else:
            moved.append(name)
            distances.append(float(values.std()))
    return moved, still, distances
