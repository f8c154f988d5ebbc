"""What is known of a checkpoint and of one of its layers: what rules judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ssmdiag.assessment.training_signs import TrainingSigns, names_of_signs, read_training_signs
from ssmdiag.checkpoint.attention import attention_layers
from ssmdiag.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.assessment.memory import LayerMemory
    from ssmdiag.assessment.spectrum import LayerDiagnosis
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.errors import LayerError
    from ssmdiag.families.layer import Layer
    from ssmdiag.families.recognition import Recognition
    from ssmdiag.probing.saved import SavedProbe
    from ssmdiag.recurrence.modal import Recurrence, RecurrentWeight

PLAIN = ("float16", "float32", "float64", "bfloat16", "complex")
"""Prefixes of the dtypes whose values are plain numbers that torch can test for NaN."""


MOST_BYTES = 200_000
"""Larger tensors (projections) are not examined: a check reads the recurrence, not the whole model."""
MOST_OWN_BYTES = 1_000_000
"""The same for tensors that the family reads, such as B and C of wide layers."""


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
    probe: SavedProbe | None = None
    """What `ssmdiag probe` observed of this very model."""

    @cached_property
    def training(self) -> TrainingSigns:
        """Whether the tensors beside the recurrence look trained; read on first use."""
        return read_training_signs(self.checkpoint, self.recognition)

    @cached_property
    def names_by_layer(self) -> Mapping[str, tuple[str, ...]]:
        """Path of each recognised layer → all tensors of its module, including those its family does not use.

        Top-level tensors belong to a layer only if its family uses them.
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

    @cached_property
    def attention_layers(self) -> tuple[str, ...]:
        """Paths of the attention layers beside the recurrent ones. They remember too, and are not judged."""
        return attention_layers(self.checkpoint, (n for names in self.names_by_layer.values() for n in names))

    def names_examined(self) -> Iterator[str]:
        """Yield the tensors that rules load: small ones of the layers' modules, and signs of training."""
        used = {name for layer in self.recognition.layers for name in layer.names.values()}
        for name in (name for names in self.names_by_layer.values() for name in names):
            if self.checkpoint[name].nbytes <= (MOST_OWN_BYTES if name in used else MOST_BYTES):
                yield name
        yield from names_of_signs(self.checkpoint, self.recognition)

    def load(self, name: str, most_bytes: int = 1_000_000) -> Tensor | None:
        """Return a tensor's values in their stored dtype; None where it is absent, packed, unreadable or larger."""
        stored = self.checkpoint.get(name)
        if stored is None or stored.nbytes > most_bytes or not stored.dtype.startswith(PLAIN):
            return None
        try:
            return stored.load()
        except CheckpointError:  # SSM401 reports it, or the diagnosis itself where the recurrence needs the tensor
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
    """Which of its module's recurrences this is; shared tensors are examined with the first."""

    @property
    def context(self) -> int | None:
        return self.whole.context

    def weights(self, role: str) -> tuple[RecurrentWeight, ...]:
        """Return the stored weights of one role: `rate`, `frequency` or `step`."""
        return tuple(weight for weight in self.recurrence.weights if weight.role == role)

    def local(self, name: str) -> str:
        """Return a tensor's name within the layer's module, as a message calls it: `A_log`, `dt_proj.bias`."""
        return next((local for local, full in self.layer.names.items() if full == name), name)
