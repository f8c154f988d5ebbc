"""Live models whose rates are pushed one way, reading by reading, until their own arithmetic gives NaN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ssmdiag
from ssmdiag.families import known_families
from tests.families.synthetic import config
from tests.reparam.bag import Bag
from tests.reparam.test_every_spelling import rates_below_one

SPELLINGS = {
    f"{family.name}:{spelling.name}": (family, spelling) for family in known_families() for spelling in family.spellings
}


def build(name: str) -> Bag:
    """Return a small model of one layer, every mode of which decays."""
    family, spelling = SPELLINGS[name]
    return Bag(rates_below_one(family, spelling), config(family, spelling))


def rates(model: nn.Module) -> Tensor:
    """Return the rates of its one layer, (channel, mode)."""
    return ssmdiag.extract_recurrences(ssmdiag.read_module(model))[0].rate


class Pushed:
    """A model whose rate, or step, is pushed towards slower modes or faster ones, from where it is now."""

    def __init__(self, model: nn.Module, *, faster: bool = False) -> None:
        self.model = model
        weights = {weight.role: weight for weight in ssmdiag.extract_recurrences(ssmdiag.read_module(model))[0].weights}
        decides = weights.get("rate") or weights["step"]
        self.linear = decides.map in ("direct", "none", "relu")
        self.weight = model.get_parameter(decides.name)
        self.start = self.weight.detach().clone()
        self.sign = 1.0
        self.by(0.01)
        self.sign = 1.0 if bool(rates(model).min() > self._rates_at_start()) == faster else -1.0

    def _rates_at_start(self) -> Tensor:
        self.by(0.0)
        return rates(self.model).min()

    def by(self, distance: float) -> None:
        """Put the weight so far from its start."""
        with torch.no_grad():
            self.weight.copy_(self.start + self.sign * distance)

    def breaks(self, when: Callable[[Tensor], bool]) -> None:
        """Make it NaN once the rates, in the model's own float32, are such."""
        if when(rates(self.model).float()):
            with torch.no_grad():
                self.weight.fill_(torch.nan)


def rounds_to_one(rate: Tensor) -> bool:
    """Whether a decay is 1, or more."""
    return bool(((-rate).exp() >= 1).any())


def overflows(rate: Tensor) -> bool:
    """Whether a rate is infinite."""
    return bool(rate.isinf().any())
