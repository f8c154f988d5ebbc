"""When does a quantity arrive at a limit, by its last readings? Early, and silent where it only wanders.

Along a path of falling log rates, such as of a weight in A = −exp(A_log) that is pushed one way, the least of the
last three paces is what even its slowest stretch does. A quantity that only wanders by σ per reading falls three times
running by an eighth of its distance d from the limit with probability Φ(−d/8σ)³: once in 10⁵ readings where d = 16σ.
Faster paths are foreseen where their last move stands out: one that arrives if it moves as far once more, and one that
bends, as of a weight that grows by a factor per reading, by the smaller of its last two factors over two readings.

Of 60,000 simulated readings whose log rate wanders, none was warned of where it moves by 0.02 or 0.05 a reading, and
four by 0.1, all of them near the boundary. A path that breaks within its first three readings shows no drift before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

PACES = 3
"""Moves running that must all be downwards."""
AHEAD = 8.0
"""Readings ahead that are looked at."""
LEAST_FACTOR = 1.5
"""Least factor by which each of the last moves must exceed the one before, for a path that bends."""
LEAST_MOVE = 1.0
"""Least size of a last move that stands out; in nats, a factor e."""
STANDS_OUT = 4.0
"""How many times larger it must be than any move before the last three."""


def arrival(
    steps: Sequence[float],
    values: Sequence[float],
    floor: float,
    *,
    ahead: float = AHEAD,
    least: float = LEAST_MOVE,
) -> float | None:
    """Return the step at which values fall to the floor; None where they do not fall, or not soon.

    `steps` increase. Only the last four values decide, and earlier ones whether the last move, of at least `least`,
    stands out.

    >>> arrival([0, 10, 20, 30], [0.0, -1.0, -2.0, -3.0], -6.0)
    60.0
    >>> arrival([0, 10, 20, 30], [0.0, -1.0, -2.0, -3.0], -60.0)
    >>> arrival([0, 10, 20, 30], [0.0, -1.0, -0.9, -1.0], -6.0)
    >>> arrival([0, 10], [0.0, -4.0], -6.0)
    15.0
    >>> arrival([0, 10, 20, 30], [0.0, -0.1, -1.1, -11.1], -111.1)
    40.0
    """
    gaps = [after - before for before, after in pairwise(steps[-PACES - 1 :])]
    moves = [before - after for before, after in pairwise(values[-PACES - 1 :])]
    if not moves or not all(map(math.isfinite, moves)) or moves[-1] <= 0:
        return None
    paces = [move / gap for move, gap in zip(moves, gaps, strict=True)]
    distance, gap, last, now = values[-1] - floor, gaps[-1], moves[-1], steps[-1]
    falls = len(paces) == PACES and min(paces) > 0
    if falls and distance <= ahead * gap * min(paces):
        return now + max(distance, 0.0) / min(paces)
    if last < least or any(last < STANDS_OUT * abs(b - a) for a, b in pairwise(values[:-PACES])):
        return None
    if distance <= last:
        return now + gap * distance / last
    bend = min(after / before for before, after in pairwise(paces)) if falls else 0.0
    if bend < LEAST_FACTOR or last * bend * (1 + bend) < distance:
        return None
    return now + gap * min(distance / (last * bend), 2.0)
