"""The interface of a family: the tensors it is recognised by, and how they become a `Recurrence`.

A family is one module in this package (or in another, under the entry point `ssmdiag.families`)
with a module-level `FAMILY`. It imports the types it names from here, and must not import torch: `read` gets tensors
and uses their methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ssmdiag.families.layer import Layer
from ssmdiag.recurrence.clock import Clock, Scan
from ssmdiag.recurrence.modal import Recurrence

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any


Trait = Literal[
    "fixed decay", "float32 decay", "fast channels", "layers alike", "slow recurrence", "matrix memory",
    "attention inside", "gates without bias", "undecayed skip", "constant step", "overwrites", "feedback",
    "linearised",
]  # fmt: skip
"""Facts about a family, beside its tensors, that rules need.

`fixed decay`: chosen by design and never trained. `float32 decay`: the reference code upcasts A_log or passes a
log-decay to a float32 kernel. `fast channels`: many forget within a step by design. `layers alike`: all layers of a
model have the same tensors. `slow recurrence`: its own training code gives the recurrence a smaller learning rate.
`matrix memory`: modes are keys of a matrix; their contents differ by what was written, not by decay.
`attention inside`: a moving average before attention in the same layer. `gates without bias`: their decay at zero
input shows nothing of what they learnt. `undecayed skip`: its own training code exempts D from weight decay.
`constant step`: some of its own code (Megatron, transformers) starts dt_bias at a constant 1. `overwrites`: writing
replaces what is stored (delta rule), so that decay bounds memory from above. `feedback`: gates and writing read the
state through a matrix, which a nominal decay leaves out. `linearised`: the recurrence is nonlinear and read by its
slope at zero; a mode that grows there saturates.
"""


@dataclass(frozen=True)
class Spelling:
    """One way in which a family's tensors are named on disk.

    `tensors` maps a name local to the module to its axes: `"channel mode"` binds two axis names that
    must agree between siblings, `head*mode` is their product, `mode+2*head` a sum (where it comes to
    something else, it is another family), a number must match exactly, `_` is any size, `complex: …` a
    complex dtype, `float64: …` that dtype. The first tensor is the telltale: where it is found without
    the others, the report says which one is missing.
    """

    name: str
    """The implementations whose files use this spelling."""
    tensors: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    """Local names whose presence rules this family out."""
    strangers: str | None = None
    """Regular expression of local names, beside those above, that such a module never has."""
    path: str | None = None
    """Regular expression the module path must contain, where names alone are ambiguous."""
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Settings of config.json that must have one of these values, such as {"model_type": ("jamba",)}."""

    @property
    def telltale(self) -> str:
        return next(iter(self.tensors))


@dataclass(frozen=True)
class Option:
    """A setting that tensors do not determine: a map, a discretisation, a code version."""

    name: str
    choices: tuple[str, ...]
    usual: str
    """The value assumed where no setting gives one."""
    meaning: str
    """What it decides, for the report."""
    settings: tuple[str, ...] = ()
    """Its names in config.json or the file's hyper-parameters; the last path element."""
    number: bool = False
    """True: any number is a value; `choices` are then the common ones."""

    def allows(self, value: str) -> bool:
        """Whether this is one of the choices, or a number where any number will do."""
        return value in self.choices or (self.number and _is_number(value))


@dataclass(frozen=True)
class Steering:
    """A tensor through which the input controls a layer's decays, or what is written to and read from its memory.

    The nominal operating point does not show it: `compare --strict` compares it with the tensor of the same role in
    the other checkpoint.
    """

    role: str
    """What it does, in plain words; the same word in every spelling."""
    tensor: str
    """Name local to the module; a tensor beside the module has the prefix `^.`. Of several in one role the first
    present counts."""
    layout: Callable[[Tensor, Layer], Tensor | None] | None = None
    """Converts the values to the layout of the other spellings: the rows of this role, transposed …; None where the
    settings do not determine it: the tensor is then compared only under its own name."""
    needed: bool = False
    """True: every layer has it, so without it nothing is proven about a layer."""
    channels: int | None = None
    """Axis of the rows of this role that runs over the layer's channels, where a conversion may reorder them."""


@dataclass(frozen=True)
class ForwardSetting:
    """A setting that changes a layer's memory, but is not used in reading the layer.

    `compare --strict` compares it with the other checkpoint's.
    """

    names: tuple[str, ...]
    """Its names in config.json or the file's hyper-parameters; the first present counts."""
    usual: Any
    """Its value where a configuration does not give it; None where that depends on the implementation."""
    meaning: str
    """What it decides, for the report."""
    implied: Mapping[str, Any] = field(default_factory=dict)
    """Its value in models of some `model_type`, which need not give it."""
    only: tuple[str, ...] = ()
    """Values of `model_type` whose forward pass uses it, if others use the name for something else."""


@dataclass(frozen=True)
class Family:
    """A model family: its name, its paper, its spellings, and how a layer of it is read."""

    name: str
    """Short and stable: used in JSON and in `--assume family=…`."""
    title: str
    """Name as written in papers."""
    paper: str
    memory: Literal["exact", "nominal"]
    """`nominal`: the decay depends on the input and is read at the gates' bias."""
    spellings: tuple[Spelling, ...]
    read: Callable[[Layer], Iterable[Recurrence]]
    clock: Callable[..., Clock] | None = None
    """Of a live module of this family and its input (batch, time, feature): the decay at every token, as the module's
    own forward pass computes it; channels and modes in the order of `read`. It calls the module's submodules. Further
    parameters are keywords that the module is called with. Raises LayerError where it cannot be told from the module.
    None: ssmdiag cannot observe this family, or its decay does not depend on the input."""
    scan: Callable[[Any, Tensor], Scan] | None = None
    """Of the same: all that the module's scan is given. None: ssmdiag cannot step this family's state."""
    steering: Callable[[Layer], Iterable[Steering]] | None = None
    """Tensors through which the input controls its memory; None if unknown: only equal files are then proven equal."""
    forward: tuple[ForwardSetting, ...] = ()
    """Settings that change its memory while its weights stay the same."""
    repositories: tuple[str, ...] = ()
    """GitHub's owner/name of the code whose checkpoints have layers of it."""
    model_types: tuple[str, ...] = ()
    """Values of `model_type` whose models, as transformers builds them, have layers of this family."""
    gguf: tuple[str, ...] = ()
    """Values of `general.architecture` of GGUF files that have layers of it."""
    traits: frozenset[Trait] = frozenset()
    options: tuple[Option, ...] = ()
    caveat: str = ""
    """What the modal form omits, in one sentence for the report."""
    declared: bool = False
    """True: the user declared it in a map file; it has precedence over all other families."""
    reviewed: bool = True
    """False: ssmdiag printed its map file, and the file says that it has not been reviewed."""


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
