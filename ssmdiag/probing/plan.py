"""Which passes a text is put through to measure use: where it is cut, how much of it is kept, what it costs.

Of a text of L steps a start s drops all before it, L/4 steps or more. One pass from s to s + n then gives the answers
at s, s + 1, …, s + n with N = 0, 1, …, n steps of the past beside the present one. Passes have one of a few lengths n:
L/2, a quarter of it, a quarter of that … The shorter are the more numerous, so that each length costs the same; passes
of one length go together, and none is padded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.errors import SsmdiagError

SHORTEST_TEXT = 4
SHORTER = 4
"""How much shorter the passes of the next length are."""
SHORTEST = 4
"""Steps of the past in the shortest passes, unless the longest are shorter."""
PARTS = 8
"""Stretches of a text whose sums are kept apart."""


@dataclass(frozen=True)
class Plan:
    """Which passes a text of this length is put through."""

    length: int
    cuts: int
    """Passes of the longest kind; there are four times as many a quarter as long."""

    def __post_init__(self) -> None:
        if self.length < SHORTEST_TEXT:
            raise SsmdiagError(
                f"texts of {self.length:,} step{'s' * (self.length != 1)}.",
                expected=f"{SHORTEST_TEXT} at least: half of a text is dropped, to see what is left without it",
                advice="give a longer text, or a larger --length.",
            )

    @property
    def first(self) -> int:
        """The first start: at least as many steps are always dropped."""
        return self.length // 4

    @property
    def tested(self) -> int:
        """The most steps of the past that are kept."""
        return self.length // 2

    @property
    def levels(self) -> list[int]:
        """Steps of the past in passes of each kind, the longest first."""
        found = [self.tested]
        while found[-1] // SHORTER >= SHORTEST:
            found.append(found[-1] // SHORTER)
        return found

    @property
    def replacements(self) -> int:
        """How many tokens of a text are replaced, one at a time."""
        return max(1, self.cuts // 3)

    def starts_of(self, steps: int) -> int:
        """Return how many passes of this kind a text is put through."""
        return min(self.cuts * self.tested // steps, self.length - self.first - steps)

    @property
    def tokens(self) -> int:
        """Tokens of a text that go through the module in all, the repeats that measure noise left out."""
        cut = sum(self.starts_of(steps) * (steps + 1) for steps in self.levels)
        return self.length * (1 + self.replacements) + (self.length - self.first) + cut

    def starts(self, steps: int, generator: torch.Generator) -> Tensor:
        """Return one start drawn in each of as many equal stretches of the text, ascending."""
        places, count = self.length - self.first - steps, self.starts_of(steps)
        drawn = (torch.arange(count) + torch.rand(count, generator=generator, dtype=torch.float64)) * (places / count)
        return self.first + drawn.long().clamp(max=places - 1)
