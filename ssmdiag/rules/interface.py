"""The contract of a rule: what it looks at, when it speaks, and what `ssmdiag explain` says of it.

A rule is one module in this package (or an object under the entry point group `ssmdiag.rules`) with a
module-level `RULE`. It must not import torch at the top: `examine` gets tensors and uses their methods.

A rule fires on evidence, not on taste: it stays quiet on healthy models, trained and freshly initialised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.errors import LayerError
    from ssmdiag.families.layer import Layer
    from ssmdiag.families.recognition import Recognition
    from ssmdiag.memory import LayerMemory
    from ssmdiag.recurrence import Recurrence, RecurrentWeight
    from ssmdiag.spectrum import LayerDiagnosis
    from ssmdiag.training_signs import TrainingSigns

PLAIN = ("float16", "float32", "float64", "bfloat16", "complex")
"""Starts of the dtypes whose values are numbers as they stand and that torch can test for NaN."""


@dataclass(frozen=True)
class Threshold:
    """A number a user can set in the configuration."""

    value: float
    meaning: str
    """What it is compared with, with its unit."""


@dataclass(frozen=True)
class Observation:
    """What a rule saw; the layer, code and severity are filled in by who runs the rule."""

    message: str
    """A phrase that follows `layer 3: `, in lower case, with the numbers, without a full stop."""
    count: int
    """How many modes, channels or values are affected."""
    of: int | None = None
    """How many there are of them."""
    value: float | None = None
    """The number held against the threshold; a baseline compares it."""
    threshold: float | None = None
    tensor: str | None = None
    """Cleaned name of the tensor at fault."""
    layer: str | None = None
    """Path of the layer, where a rule that looks at the whole checkpoint knows it."""
    family: str | None = None
    severity: Literal["error", "warning", "note"] | None = None
    """In place of the rule's own, where the evidence is weaker or stronger."""
    advice: str | None = None
    """In place of the rule's own."""


@dataclass(frozen=True, eq=False)
class CheckpointEvidence:
    """What is known of the whole checkpoint. Rules with `looks_at="checkpoint"` get it after all layers."""

    checkpoint: Checkpoint
    """All tensors, lazily: `checkpoint[name].load()`; `checkpoint.settings`."""
    recognition: Recognition
    """Layers found, near misses, tensors that look recurrent and were not used."""
    context: int | None
    """Context length in steps, where known."""
    layers: tuple[LayerDiagnosis, ...] = ()
    """Numbers of every layer that was read; with horizon and decay. Empty while layers are still being read."""
    unread: tuple[tuple[Layer, LayerError], ...] = ()
    """Recognised layers that could not be read, and why."""

    @cached_property
    def training(self) -> TrainingSigns:
        """Whether the tensors beside the recurrence look trained; read on first use."""
        from ssmdiag.training_signs import read_training_signs

        return read_training_signs(self.checkpoint, self.recognition)

    @cached_property
    def names_by_layer(self) -> Mapping[str, tuple[str, ...]]:
        """Path of each recognised layer → all tensors of its module, those that its family does not use too.

        Nothing at the top of the file belongs to a layer, unless its family uses it.
        """
        found: dict[str, list[str]] = {layer.path: [] for layer in self.recognition.layers}
        used = {name: layer.path for layer in self.recognition.layers for name in layer.names.values()}
        for name in self.checkpoint:
            path = used.get(name) or name
            while path and path not in found:
                path = path.rpartition(".")[0]
            if path:
                found[path].append(name)
            elif name in used:
                found[""].append(name)
        return {path: tuple(names) for path, names in found.items()}

    def load(self, name: str, most_bytes: int = 1_000_000) -> Tensor | None:
        """Return a tensor's values in their stored dtype; None where it is absent, packed, unreadable or larger."""
        from ssmdiag.errors import CheckpointError

        stored = self.checkpoint.get(name)
        if stored is None or stored.nbytes > most_bytes or not stored.dtype.startswith(PLAIN):
            return None
        try:
            return stored.load()
        except CheckpointError:  # SSM401 says so, or the diagnosis itself where the recurrence needs it
            return None


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """One recurrence of one layer with all that is known of it. Rules with `looks_at="layer"` get one at a time."""

    recurrence: Recurrence
    """ℓ (channel, mode), the stored weights with their maps, Δ, B̄, C."""
    layer: Layer
    """The module's tensors under their local names: `layer.names`, `layer["D"]`, `layer.stored("D").dtype`."""
    numbers: LayerDiagnosis
    """Quantiles of rate and half-life, margin, counts of broken modes."""
    memory: LayerMemory | None
    """Horizon and law per channel, of a sample of the channels where there are many."""
    whole: CheckpointEvidence
    position: int = 0
    """Which of its module's recurrences this is: what they share is looked at with the first."""

    @property
    def context(self) -> int | None:
        return self.whole.context

    def weights(self, role: str) -> tuple[RecurrentWeight, ...]:
        """Return the stored weights of one role: `rate`, `frequency` or `step`."""
        return tuple(weight for weight in self.recurrence.weights if weight.role == role)

    def local(self, name: str) -> str:
        """Return a tensor's name within the layer's module, as a message calls it: `A_log`, `dt_proj.bias`."""
        return next((local for local, full in self.layer.names.items() if full == name), name)


Limits = Mapping[str, float]
"""A rule's thresholds by name, as the user set them."""


def lacks_nothing(evidence: CheckpointEvidence) -> str | None:
    """Say that every checkpoint can be judged."""
    return None


def lacks_context(evidence: CheckpointEvidence) -> str | None:
    """Say that the context length is not known."""
    return None if evidence.context else "no context length is known: --length gives one"


def lacks_optimizer(evidence: CheckpointEvidence) -> str | None:
    """Say that there is no optimiser's state to look at."""
    from ssmdiag.errors import CheckpointError

    try:
        return None if evidence.checkpoint.optimizer_groups else "no optimiser's state is in or beside the file"
    except CheckpointError:
        return "the optimiser's state was not read"


@dataclass(frozen=True)
class Rule:
    """One check: its code, when it speaks, and its page in `ssmdiag explain`."""

    code: str
    """SSM and three digits: 1 stability, 2 memory, 3 precision, 4 integrity and initialisation, 5 training state."""
    name: str
    """Short and stable, such as `unstable-mode`; usable wherever the code is."""
    severity: Literal["error", "warning", "note"]
    summary: str
    """One line for `ssmdiag rules`."""
    looks_at: Literal["layer", "checkpoint"]
    examine: Callable[[Any, Limits], Iterable[Observation]]
    """(LayerEvidence or CheckpointEvidence, limits) → what it saw; nothing where all is well."""
    advice: str
    """What to do, in one sentence, printed under the finding."""
    formula: str
    """What is computed, in the notation of the field, with its source."""
    why: str
    """Why it hurts."""
    fix: str
    """How to fix it, in full."""
    example: str
    """A public case, with its address."""
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    worse: Literal["higher", "lower"] = "higher"
    """Which way `value` gets worse: a baseline lets a finding pass that has not got worse."""
    lacks: Callable[[CheckpointEvidence], str | None] = lacks_nothing
    """What the checkpoint would need to hold for the rule to judge it, as a phrase; None where it holds that."""
    origin: float = 0.0
    """What `value` is where all is well, such as 1 for a spectral radius: a baseline allows a tenth of the way from
    there to the value it has on file."""

    @property
    def limits(self) -> dict[str, float]:
        """The thresholds' values where the user sets none."""
        return {name: threshold.value for name, threshold in self.thresholds.items()}
