"""Arms of the built-in model, trained as one batched ensemble."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.errors import ConfigurationError
from ssmdiag.reparam import read_module
from ssmdiag.retrain.adamw import ArmAdamW
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.batches import ArmBatches, loss_of_nothing
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.gradients import losses_and_gradients, validate
from ssmdiag.retrain.learned_kernel import learned_kernel
from ssmdiag.retrain.memory_limit import saying_what_fits, saying_what_to_lower
from ssmdiag.retrain.model import Ensemble, ModelSettings
from ssmdiag.retrain.perturbation import perturbation_curve
from ssmdiag.retrain.results import LearnedKernel, PerturbationCurve, Point
from ssmdiag.retrain.saving import Contents
from ssmdiag.retrain.starting_point import StartingPoint
from ssmdiag.retrain.state_file import digest_of
from ssmdiag.retrain.tasks import TaskData


class EnsembleTrainee:
    """A `Trainee` of several arms; `ranks` names the device, `start` weights instead of those that the seeds draw."""

    def __init__(
        self,
        arms: Sequence[Arm],
        data: TaskData,
        settings: ModelSettings,
        batch: int,
        *,
        start: StartingPoint | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if ranks.device.startswith("mps"):
            raise ConfigurationError(
                "--device mps: kernels are formed in float64, which it does not have.", advice="--device cpu"
            )
        self.arms, self.ranks, self._data, self._start = tuple(arms), ranks, data, start
        self.ensemble = Ensemble(arms, settings, data, ranks.device)
        if start is not None:
            for k, arm in enumerate(arms):
                self.ensemble.load_state(k, start.weights(arm.param))
        self._optimiser = ArmAdamW(
            self.ensemble.parameters,
            {name: [_rate(arm, self.ensemble.recurrent(name)) for arm in arms] for name in self.ensemble.parameters},
            [arm.weight_decay for arm in arms],
        )
        self._batches = ArmBatches(arms, data, batch, ranks.device)
        self._gradients: Mapping[str, Tensor] = {}
        self.nothing = loss_of_nothing(data.validation_targets, data.outputs)

    def settings(self) -> dict[str, Any]:
        data, start = self._data, self._start
        return {
            **asdict(self.ensemble.settings),
            "length": data.length,
            "loss": data.loss,
            "read_out": data.read_out,
            "start": digest_of(start.tensors, start.map) if start else None,
        }

    def data(self, step: int) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        data = self._data
        return digest_of(data.inputs, data.targets, data.validation_inputs, data.validation_targets)

    def require_same_batches(self, step: int) -> None:
        self.ranks.require_same("the data and weights", digest_of(self._digest, self.ensemble.parameters))

    def losses(self, step: int) -> list[float]:
        self._gradients = {}
        inputs, targets = self._batches.at(step)
        losses, self._gradients = losses_and_gradients(self.ensemble, inputs, targets, self._data, self.ranks)
        return losses.tolist()

    def update(self, scale: float, running: Sequence[bool]) -> None:
        self._optimiser.step(self._gradients, scale, torch.tensor(running, device=self.ranks.device))

    def validate(self, step: int) -> list[Point]:
        return validate(self.ensemble, self._data, step)

    def state(self) -> dict[str, Any]:
        weights = {name: value.detach() for name, value in self.ensemble.parameters.items()}
        return {"weights": weights, "optimiser": self._optimiser.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        for name, value in self.ensemble.parameters.items():
            value.detach().copy_(state["weights"][name])
        self._optimiser.load(state["optimiser"])

    def contents(self, position: int) -> Contents:
        arm = self.arms[position]
        config = json.dumps({**self._config(arm), "arm": asdict(arm)}, indent=2).encode() + b"\n"
        return Contents(self.ensemble.state_dict(position), {"rate_map": arm.param}, {"config.json": config})

    def checkpoint(self, position: int) -> Checkpoint:
        module = nn.Module()
        for name, value in self.ensemble.state_dict(position).items():
            *path, own = name.split(".")
            part = module
            for step in path:
                if step not in part._modules:
                    part.add_module(step, nn.Module())
                part = part.get_submodule(step)
            part.register_buffer(own, value)
        return read_module(module, config=self._config(self.arms[position]))

    def perturbation(self, position: int) -> PerturbationCurve:
        return perturbation_curve(self.ensemble, position, self._data)

    def kernel(self, position: int) -> LearnedKernel | None:
        return learned_kernel(self.ensemble, position, self._data)

    def saying_what_fits(self) -> AbstractContextManager[None]:
        if self.ranks.count > 1:
            return saying_what_to_lower(f"on {self.ranks.device}, training {len(self.arms)} arms", "a smaller --batch.")
        return saying_what_fits(self._attempt, len(self.arms), self._batches.draw.size, self.ranks.device)

    def _attempt(self, arms: int, batch: int) -> None:
        """Do the first step's work for some arms and sequences, and discard it."""
        self._gradients = {}
        inputs, targets = self._batches.at(0, slice(arms), slice(batch))
        losses_and_gradients(self.ensemble, inputs, targets, self._data)

    def _config(self, arm: Arm) -> dict[str, Any]:
        return {"seq_len": self._data.length, "rate_map": arm.param}


def _rate(arm: Arm, part: str | None) -> float:
    """Return the learning rate of a parameter, by what it decides: `eigenvalues`, `step` or neither."""
    if part and arm.freeze in (part, "both"):
        return 0.0
    return arm.recurrence_lr if part and arm.recurrence_lr is not None else arm.lr
