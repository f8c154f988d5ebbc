"""The records of saved optimisers: their groups, by the names that the checkpoint gives their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that an optimiser updates with the same settings."""

    learning_rate: float | None
    """At the time of saving; None where the optimiser has none, as Adafactor may."""
    initial_learning_rate: float | None
    """Before any schedule; None where no schedule ran."""
    weight_decay: float | None
    parameters: tuple[str, ...] | None
    """Names, in the checkpoint, of the parameters known to be in this group; None where none are known.

    Tied tensors are listed under the first of their names.
    """
    count: int
    """Number of parameters in the group, whether their names are known or not."""
    optimizer: str | None = None
    """What the files call the optimiser, if anything: `AdamW`, `adamw_torch` …"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Its other plain settings: betas, eps, momentum …"""
    note: str = ""
    """Why names of parameters are unknown, or what assumption the known ones rest on; empty where neither applies."""

    @property
    def unnamed(self) -> int:
        """Number of parameters in the group whose names are unknown."""
        return self.count - len(self.parameters or ())


@dataclass(frozen=True)
class OptimizerState:
    """The groups of all optimisers of a checkpoint, with remarks on what could not be read."""

    groups: tuple[OptimizerGroup, ...] = ()
    notes: tuple[str, ...] = ()
