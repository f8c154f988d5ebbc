"""The state an arm of a module is resumed from: what it holds, and what it must have been trained as."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.results import Point
from ssmdiag.retrain.resuming import OTHERWISE, digest_of, load_run, save_run, state_path
from ssmdiag.retrain.streamed_batches import StreamedBatches

SAME_START = 1e-3
"""Largest relative difference between two losses of the same untrained model: other machines round otherwise."""


@dataclass
class ModuleRun:
    """What changes while an arm trains, apart from its weights."""

    step: int = 0
    seconds: float = 0.0
    diverged_at: int | None = None
    history: list[Point] = field(default_factory=list)


class ModuleState:
    """The state of one arm; made before anything is trained."""

    def __init__(
        self,
        folder: Path,
        arm: Arm,
        module: nn.Module,
        optimiser: torch.optim.Optimizer,
        run: ModuleRun,
        batches: SampledBatches | StreamedBatches,
        budget: Budget,
        source: str,
        task: str,
        assume: Mapping[str, str] | None,
    ) -> None:
        self.folder, self.arm, self.module, self.optimiser, self.run = folder, arm, module, optimiser, run
        self.batches = batches
        self.settings: dict[str, Any] = {
            "task": task,
            "source": source,
            **asdict(budget),
            "length": batches.length,
            "loss": _name_of(batches.loss),
            "read_out": batches.read_out,
            "assume": dict(assume or {}),
            "optimiser": _optimiser(optimiser),
            "start": digest_of(module.state_dict(), dict(module.named_buffers())),
        }

    def save(self) -> None:
        """Write the state. Raises SsmdiagError where it cannot be written; the last one stays."""
        run = self.run
        changing = {
            "step": run.step,
            "seconds": run.seconds,
            "diverged_at": run.diverged_at,
            "history": [asdict(point) for point in run.history],
            "weights": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        save_run(self.folder, (self.arm,), self.settings, self._data(run.step), changing)

    def load(self, validate: Callable[[int], Point]) -> None:
        """Put back the state of this arm, if there is one.

        `validate` scores the module as it is before that: code of its own that has changed since shows in the loss it
        began with. Raises ConfigurationError where the state is of another run, SsmdiagError where it is torn.
        """
        there = load_run(self.folder, (self.arm,), self.settings, self._data)
        if there is None:
            return
        history = [Point(**point) for point in there["history"]]
        if history and history[0].step == 0:
            self._require_same_loss(history[0].loss, validate(0).loss)
        weights: OrderedDict[str, Any] = OrderedDict(there["weights"])
        weights._metadata = self.module.state_dict()._metadata  # type: ignore[attr-defined]
        self.module.load_state_dict(weights)
        self.optimiser.load_state_dict(there["optimiser"])
        run = self.run
        run.step, run.seconds, run.diverged_at = there["step"], there["seconds"], there["diverged_at"]
        run.history = history

    def _data(self, step: int) -> str:
        return self.batches.digest(self.arm.seed, step)

    def _require_same_loss(self, was: float, now: float) -> None:
        if not math.isclose(was, now, rel_tol=SAME_START):
            raise ConfigurationError(
                f"--resume: {state_path(self.folder, (self.arm,)).name} is of a model or a loss function that answered "
                f"otherwise: its loss before training was {was:.6g}, and is {now:.6g} now.",
                expected="the code it was begun with",
                advice=OTHERWISE,
            )


def _name_of(loss: Any) -> str:
    return loss if isinstance(loss, str) else str(getattr(loss, "__qualname__", type(loss).__qualname__))


def _optimiser(optimiser: torch.optim.Optimizer) -> str:
    """Return what is trained by what: a module's own freezing, or tags that have changed, show here."""
    groups = [
        f"{len(group['params'])} tensors of {group['name']} at lr {group['lr']:g}, decay {group['weight_decay']:g}"
        for group in optimiser.param_groups
    ]
    return f"{type(optimiser).__name__} on {'; '.join(groups)}"
