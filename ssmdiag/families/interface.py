"""The contract of a family: which tensors it is known by, and how they become a `Recurrence`.

A family is one module in this package (or in another, under the entry point `ssmdiag.families`)
with a module-level `FAMILY`. It must not import torch: `read` gets tensors and uses their methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence.modal import Recurrence


Trait = Literal[
    "fixed decay", "float32 decay", "fast channels", "layers alike", "slow recurrence", "matrix memory",
    "attention inside", "gates without bias", "undecayed skip", "constant step",
]  # fmt: skip
"""What rules must know of a family beside its tensors.

`fixed decay`: chosen by design and never trained. `float32 decay`: the reference code upcasts A_log or hands a
log-decay to a float32 kernel. `fast channels`: many forget within a step by design. `layers alike`: those of one model
have the same tensors. `slow recurrence`: its own training code gives the recurrence a smaller learning rate.
`matrix memory`: modes are keys of a matrix, and what they hold differs by what was written, not by decay.
`attention inside`: a moving average before attention in the same layer. `gates without bias`: what they remember at
zero input says nothing of what they learnt. `undecayed skip`: its own training code keeps D from weight decay.
`constant step`: some of its own code (Megatron, transformers) starts dt_bias at a constant 1.
"""


@dataclass(frozen=True)
class Spelling:
    """One way in which a family's tensors are named on disk.

    `tensors` maps a name local to the module to its axes: `"channel mode"` binds two axis names that
    must agree between siblings, `head*mode` is their product, a number must match exactly, `_` is any
    size, `complex: …` a complex dtype, `float64: …` that dtype. The first tensor is the telltale: where
    it stands without its siblings, the report says which one is missing.
    """

    name: str
    """Whose files are spelled like this."""
    tensors: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Local names whose presence makes it another family."""
    path: str | None = None
    """Regular expression the module path must contain, where names alone are ambiguous."""
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings of config.json that must have one of these values, such as {"model_type": ("jamba",)}."""

    @property
    def telltale(self) -> str:
        return next(iter(self.tensors))


@dataclass(frozen=True)
class Option:
    """A setting that tensors cannot tell: a map, a discretisation, a code version."""

    name: str
    choices: tuple[str, ...]
    usual: str
    """What is assumed where nothing says otherwise."""
    meaning: str
    """What it decides, for the report."""
    settings: tuple[str, ...] = ()
    """Names under which config.json or the file's hyper-parameters give it; the last path element."""
    number: bool = False
    """True: any number is a value; `choices` are then the common ones."""

    def allows(self, value: str) -> bool:
        """Whether this is one of the choices, or a number where any number will do."""
        return value in self.choices or (self.number and _is_number(value))


@dataclass(frozen=True)
class Steering:
    """A tensor through which the input reaches a layer's decays, or what is written to and read from its memory.

    The nominal point does not show it: `compare --strict` holds it against the tensor of the same role in the other
    checkpoint.
    """

    role: str
    """What it does, in plain words; the same word in every spelling."""
    tensor: str
    """Name local to the module, `^.` before it for one beside the module. Of several in one role the first that is
    there counts."""
    layout: Callable[[Tensor, Layer], Tensor | None] | None = None
    """How the values stand in the other spellings: the rows of this role, transposed …; None where the settings do
    not tell, and then it is compared under its own name alone."""
    needed: bool = False
    """True: without it nothing is proven of a layer, since every layer has it."""
    channels: int | None = None
    """Axis of the rows of this role that runs over the layer's channels, where a conversion may reorder them."""


@dataclass(frozen=True)
class ForwardSetting:
    """A setting that changes what a layer remembers, and of which its reading makes nothing.

    `compare --strict` holds it against the other checkpoint's.
    """

    names: tuple[str, ...]
    """Under which config.json or the file's hyper-parameters give it; the first that is there counts."""
    usual: Any
    """Where a configuration leaves it out; None where that differs from one implementation to the next."""
    meaning: str
    """What it decides, for the report."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """What it is in models of some `model_type`, which need not say so."""
    only: tuple[str, ...] = ()
    """Values of `model_type` whose forward pass knows it, if others use the name for something else."""


@dataclass(frozen=True)
class Family:
    """A model family: its name, its paper, its spellings, and how a layer of it is read."""

    name: str
    """Short and stable: used in JSON and in `--assume family=…`."""
    title: str
    """As the field writes it."""
    paper: str
    memory: Literal["exact", "nominal"]
    """`nominal`: the decay depends on the input and is read at the gates' bias."""
    spellings: tuple[Spelling, ...]
    read: Callable[[Layer], Iterable[Recurrence]]
    steering: Callable[[Layer], Iterable[Steering]] | None = None
    """What steers its memory by the input; None where nobody has said: then nothing is proven but of equal files."""
    forward: tuple[ForwardSetting, ...] = ()
    """Settings that change its memory though its weights are the same."""
    traits: frozenset[Trait] = frozenset()
    options: tuple[Option, ...] = ()
    caveat: str = ""
    """What the modal form leaves out, in one sentence for the report."""
    declared: bool = False
    """True: the user declared it in a map file, and it takes its tensors before any other family."""
    reviewed: bool = True
    """False: its map file is one that ssmdiag printed, and says that nobody has reviewed it."""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
