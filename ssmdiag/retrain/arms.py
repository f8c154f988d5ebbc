"""What is compared: one arm is a map, what is frozen, a learning rate, a seed and how it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, Literal

from ssmdiag.errors import ConfigurationError, meant
from ssmdiag.recurrence.maps import find_map

FREEZES = ("none", "eigenvalues", "step", "both")
STARTS = ("family", "short", "long")
LARGEST_SEED = 2**31 - 1
"""Largest seed whose derived seeds, for the batches of every epoch, fit 64 bits."""
SMALLEST, LARGEST = 2.0**-126, 2.0**128 - 2.0**104
"""Learning rates that float32 holds with all its digits."""
OWN = "own"
"""For --param: the map that a user's model already uses, whatever it is."""


@dataclass(frozen=True)
class Arm:
    """One training run. Arms of one seed start as the same function and see the same batches."""

    param: str
    """Name of the map f in Re λ = −f(w), as `ssmdiag.recurrence.maps.find_map` takes it."""
    freeze: Literal["none", "eigenvalues", "step", "both"] = "none"
    """What keeps its initial value: the eigenvalues λ, the step Δ, both or neither."""
    lr: float = 1e-2
    seed: int = 0
    init: Literal["family", "short", "long"] = "family"
    """How long the layer remembers before training."""
    recurrence_lr: float | None = None
    """Learning rate of λ and Δ; `lr` where None."""
    weight_decay: float = 0.0
    """On every weight, the recurrence included, as a training loop does that ignores tags."""

    @property
    def label(self) -> str:
        """A name for files and tables: `best`, `exp-lr0.05-seed1`; default values are left out."""
        parts = [self.param.replace(" ", "")]
        parts += [f"frozen_{self.freeze}"] * (self.freeze != "none")
        parts += [self.init] * (self.init != "family")
        parts += [f"lr{short(self.lr)}"]
        parts += [f"rlr{short(self.recurrence_lr)}"] if self.recurrence_lr is not None else []
        parts += [f"wd{short(self.weight_decay)}"] * (self.weight_decay != 0)
        return "-".join([*parts, f"seed{self.seed}"])


def short(number: float) -> str:
    """Return a number with all its digits: two arms must not share a folder."""
    return repr(float(number)).removesuffix(".0")


@dataclass(frozen=True)
class Budget:
    """How long every arm trains."""

    steps: int = 1000
    batch: int = 128
    """Sequences a step."""
    validate_every: int = 50
    checkpoint_every: int | None = None
    """Steps between saved checkpoints; None for the first and the last alone."""
    warm_up: int = 0
    """Steps over which the learning rate rises linearly; then it falls to zero along a cosine."""

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint of this step is kept."""
        every = self.checkpoint_every
        return step in (0, self.steps) or (every is not None and step % every == 0)

    def notes(self, samples: int) -> tuple[str, ...]:
        """Return a remark on a batch larger than the training set."""
        few = f"--batch {self.batch}: there are {samples:,} training sequences, and every step takes all of them"
        return (few,) if self.batch > samples else ()


def product_of(param: Sequence[str], **others: Sequence[Any] | None) -> tuple[Arm, ...]:
    """Return every combination once, in the order given; two spellings of a map count as one.

    Other keywords are fields of `Arm`, each with the values to combine; a field without values keeps its default.
    Raises MapError for an unknown map and ConfigurationError for a value no arm can have.
    """
    asked: dict[str, list[Any]] = {field.name: [field.default] for field in fields(Arm)}
    asked["param"] = [name if name == OWN else find_map(name).name for name in param]
    asked |= {name: list(values) for name, values in others.items() if values}
    for name, known in (("freeze", FREEZES), ("init", STARTS)):
        for value in asked[name]:
            if value not in known:
                raise ConfigurationError(
                    f"--{name} {value}: no such value.",
                    expected=f"one of {', '.join(known)}",
                    instead=meant(value, known),
                )
    smallest = {"lr": SMALLEST, "recurrence_lr": 0.0, "weight_decay": 0.0}
    for name, least in smallest.items():
        for number in asked[name]:
            if number is not None and not least <= number <= LARGEST:
                more = "more than 0, and a number that float32 holds" if least else "0 or more, as float32 holds it"
                raise ConfigurationError(f"{_option(name)} {number}: no optimiser can use it.", expected=more)
    for number in asked["seed"]:
        if not 0 <= number <= LARGEST_SEED:
            raise ConfigurationError(f"--seed {number}: no such seed.", expected=f"0 to {LARGEST_SEED:,}")
    for name in (*smallest, "seed"):
        twice = next((value for place, value in enumerate(asked[name]) if value in asked[name][:place]), None)
        if twice is not None:
            raise ConfigurationError(
                f"{_option(name)} {twice} is given twice; the same run again would be the same to the bit.",
                advice="leave one of them out; other seeds give other runs.",
            )
    return tuple(dict.fromkeys(Arm(**dict(zip(asked, values, strict=True))) for values in product(*asked.values())))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
