"""Whether two checkpoints grew from one start: weights of one run correlate, those drawn with two seeds do not."""

from __future__ import annotations

import math
import re
from collections.abc import Container

from ssmdiag.checkpoint import Checkpoint

FEWEST_VALUES, MOST_VALUES = 4096, 2**20
"""Of a matrix whose correlation is looked at: with fewer, chance reaches 0.1; more take long to read."""
MOST_KINDS = 3
"""Kinds of matrices, by their name without numbers, of which one each is read."""
BY_CHANCE = 6.0
"""Standard deviations of the correlation of two draws, 1/√n, up to which it is chance."""


def why_unrelated(a: Checkpoint, b: Checkpoint, leave_out: Container[str] = ()) -> str | None:
    """Return a sentence where no matrix of `a` correlates with `b`'s; None where one does, or none can be tested.

    `leave_out`: names of tensors that initialisations draw alike, such as a recurrence's.
    """
    kinds: dict[str, str] = {}
    for name in sorted(a.keys() & b.keys(), key=lambda name: (-math.prod(a[name].shape), name)):
        shape = a[name].shape
        plain = all(side[name].dtype.startswith(("float16", "float32", "float64", "bfloat16")) for side in (a, b))
        fits = len(shape) > 1 and FEWEST_VALUES <= math.prod(shape) <= MOST_VALUES and shape == b[name].shape
        if plain and fits and name not in leave_out:
            kinds.setdefault(re.sub(r"\d+", "#", name), name)
    said = []
    for name in list(kinds.values())[:MOST_KINDS]:
        one, other = (side[name].load().double().flatten() for side in (a, b))
        one, other = one - one.mean(), other - other.mean()
        correlation = float(one @ other / (one.norm() * other.norm()))
        if not abs(correlation) <= 1:
            continue  # one is constant, or not finite
        if abs(correlation) > BY_CHANCE / math.sqrt(len(one)):
            return None
        said.append(f"{correlation:+.3f} over the {len(one):,} values of {name}")
    return f"their weights do not correlate as those of one run do: {said[0]}" if said else None
