"""One arm of a module that the tool did not build, trained by torch's AdamW; several ranks share it under DDP."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.printable import plural
from ssmdiag.reparam import folded_state_dict, parameter_groups, read_module
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.batches import Batch, Inputs, SampledBatches, describe, each, pick
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.learned_kernel import SEQUENCES, compare_with, mean_derivative
from ssmdiag.retrain.memory_limit import is_out_of_memory, saying_what_fits, saying_what_to_lower
from ssmdiag.retrain.perturbation import module_perturbation_curve
from ssmdiag.retrain.results import LearnedKernel, PerturbationCurve, Point
from ssmdiag.retrain.saving import Contents
from ssmdiag.retrain.scoring import Score, answers_in, call
from ssmdiag.retrain.seeding import seeded
from ssmdiag.retrain.state_file import digest_of
from ssmdiag.retrain.streamed_batches import StreamedBatches

_EXPERTS = ("expert", "router")


class ModuleTrainee:
    """A `Trainee` of one arm.

    `module` is on the device of `ranks`, reparameterised and frozen as the arm says. `source` names its origin: only a
    state of the same origin is resumed. `beside` are files saved beside its checkpoints, such as config.json.
    """

    def __init__(
        self,
        module: nn.Module,
        arm: Arm,
        batches: SampledBatches | StreamedBatches,
        *,
        source: str = "",
        beside: Mapping[str, bytes] | None = None,
        assume: Mapping[str, str] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        groups = parameter_groups(
            module, lr=arm.lr, recurrence_lr=arm.recurrence_lr, weight_decay=arm.weight_decay, assume=assume
        )
        if not groups:
            raise ConfigurationError(f"{arm.label}: nothing is left to train.", advice="freeze less.")
        self.arms: tuple[Arm, ...] = (arm,)
        self.ranks, self.nothing = ranks, batches.nothing
        self._module, self._batches, self._seed = module, batches, arm.seed
        self._source, self._beside, self._assume = source, dict(beside or {}), dict(assume or {})
        self._score = Score(batches.loss, batches.read_out)
        self._rates = [group["lr"] for group in groups]
        self._optimiser = torch.optim.AdamW(groups)
        self._dtype = next(p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex()).to_real()
        self._fits = False
        """Whether a batch went through the module."""
        self._shared = ranks.wrap(module, some_unused=ranks.count > 1 and self._some_unused())

    def settings(self) -> dict[str, Any]:
        module, loss = self._module, self._score.loss
        return {
            "source": self._source,
            "length": self._batches.length,
            "loss": loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__qualname__),
            "read_out": self._score.read_out,
            "assume": self._assume,
            "optimiser": _trained_by(self._optimiser),
            "start": digest_of(module.state_dict(), dict(module.named_buffers())),
        }

    def data(self, step: int) -> str:
        return self._batches.digest(self._seed, step)

    def require_same_batches(self, step: int) -> None:
        inputs, targets = self._batches.at(self._seed, step)
        self.ranks.require_same("--data: the first batch", (describe(inputs), float(targets.double().sum())))

    def losses(self, step: int) -> list[float]:
        inputs, targets, share = self._part(self._batches.at(self._seed, step))
        self._module.train()
        with seeded("step", self._seed, step, self.ranks.rank, device=self.ranks.device):
            loss = self._loss(self._shared, inputs, targets)
        # DDP averages over ranks, each of which has its share of the whole.
        (loss * (share * self.ranks.count)).backward()
        return [float(self.ranks.sum(share * loss.detach().double()))]

    def update(self, scale: float, running: Sequence[bool]) -> None:
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        if all(running):
            self._optimiser.step()
        self._optimiser.zero_grad()

    def validate(self, step: int) -> list[Point]:
        return [self._validated(step, None)[0]]

    def state(self) -> dict[str, Any]:
        return {"weights": self._module.state_dict(), "optimiser": self._optimiser.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        weights: OrderedDict[str, Any] = OrderedDict(state["weights"])
        weights._metadata = self._module.state_dict()._metadata  # type: ignore[attr-defined]
        self._module.load_state_dict(weights)
        self._optimiser.load_state_dict(state["optimiser"])

    def contents(self, position: int) -> Contents:
        metadata = {"arm": json.dumps(asdict(self.arms[position]))}
        return Contents(folded_state_dict(self._module), metadata, self._beside)

    def checkpoint(self, position: int) -> Checkpoint:
        return read_module(self._module)

    def perturbation(self, position: int) -> PerturbationCurve | None:
        def loss(sequences: int) -> tuple[float, int]:
            point, count = self._validated(0, sequences)
            return point.loss, count

        return module_perturbation_curve(self._module, loss, assume=self._assume)

    def kernel(self, position: int) -> LearnedKernel | None:
        batches = self._batches
        if not isinstance(batches, SampledBatches) or batches.kernel is None:
            return None
        inputs, targets = batches.held_out
        self._module.eval()

        def answer(x: Tensor) -> Tensor:
            return self._score.answers(call(self._module, x), targets[: len(x)])

        values, noise = mean_derivative(answer, self._moved(inputs[:SEQUENCES]))
        return compare_with(batches.kernel, values, noise, batches.law)

    def saying_what_fits(self) -> AbstractContextManager[None]:
        device, smaller = self.ranks.device, "a smaller model, or a smaller --length."
        if isinstance(self._batches, SampledBatches) and self.ranks.count == 1:
            return saying_what_fits(self._attempt, 1, self._batches.draw.size, device, smaller)
        lower = "--batch" if isinstance(self._batches, SampledBatches) else "batches of --data"
        return saying_what_to_lower(f"on {device}, training {type(self._module).__name__}", f"smaller {lower}.")

    def _attempt(self, arms: int, batch: int) -> None:
        """Do the first step's work for some sequences, and discard it."""
        some = slice(batch)
        inputs, targets = self._batches.at(self._seed, 0)
        self._module.train()
        try:
            loss = self._loss(self._module, self._moved(pick(inputs, some)), targets[some].to(self.ranks.device))
            loss.backward()
        finally:
            self._module.zero_grad()

    @torch.no_grad()
    def _validated(self, step: int, most: int | None) -> tuple[Point, int]:
        """Return a validation over so many sequences, whole batches of them, and how many they were.

        Each rank goes through its part of every batch.
        """
        self._module.eval()
        total, count = torch.zeros(4, dtype=torch.float64), 0
        for batch in self._batches.validation():
            if most is not None and count >= most:
                break
            count += len(batch[1])
            inputs, targets, share = self._part(batch)
            if share or not self._fits:
                output = self._answers(self._module, inputs, targets)
                weight = self._score.weight(targets) * bool(share)
                hits = self._score.hits(output, targets)
                if weight:
                    loss = float(self._score.mean(output, targets))
                    total += torch.tensor([weight * loss, weight, hits or 0, hits is not None], dtype=torch.float64)
        loss, weight, hits, classes = self.ranks.sum(total).tolist()
        if not weight:
            raise ConfigurationError("the validation data are empty.", expected="one target at least")
        return Point(step, loss / weight, hits / weight if classes else None), count

    def _part(self, batch: Batch) -> tuple[Inputs, Tensor, float]:
        """Return this rank's part of a batch, on the device, and its share of the answers in it."""
        inputs, targets = batch
        whole = self._score.weight(targets)
        part = self.ranks.part(len(targets))
        empty = part.start == part.stop
        if empty:  # a rank with no sample still has to join the collective operations
            part = slice(0, 1)
        inputs, targets = pick(inputs, part), targets[part]
        share = 0.0 if empty else self._score.weight(targets) / max(whole, 1)
        return self._moved(inputs), targets.to(self.ranks.device), share

    def _moved(self, inputs: Inputs) -> Inputs:
        def moved(value: Tensor) -> Tensor:
            cast = self._batches.casts and value.is_floating_point()
            return value.to(self.ranks.device, self._dtype if cast else value.dtype)

        return each(inputs, moved)

    def _loss(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        output = self._answers(model, inputs, targets)
        if not self._score.weight(targets):  # this part has no answer to score: 0/0 must not spread
            return 0 * answers_in(output).sum()
        return self._score.mean(output, targets)

    def _answers(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Any:
        try:
            output = call(model, inputs)
        except SsmdiagError:
            raise
        except Exception as error:
            if self._fits or is_out_of_memory(error):
                raise
            raise ConfigurationError(
                f"{type(self._module).__name__} takes no batch of inputs {describe(inputs)} with targets "
                f"{describe(targets)}: {type(error).__name__}: {error}",
                expected="inputs as the model's forward takes them, samples along the first axis",
            ) from error
        self._fits = True
        return output

    def _some_unused(self) -> bool:
        """Whether a parameter has no part in the loss; DDP must know, on all ranks alike."""
        inputs, targets, _ = self._part(next(self._batches.validation()))
        self._module.eval()
        trained = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(self._loss(self._module, inputs, targets), trained, allow_unused=True)
        # Which experts are used may change from batch to batch.
        routed = any(part in name for name, _ in self._module.named_modules() for part in _EXPERTS)
        return self.ranks.any(routed or any(gradient is None for gradient in gradients))


def _trained_by(optimiser: torch.optim.Optimizer) -> str:
    """Return which tensors train with which settings: a module's own freezing, or changed tags, show here."""
    groups = [
        f"{plural(len(group['params']), 'tensor')} of {group['name']} at lr {group['lr']:g}, "
        f"decay {group['weight_decay']:g}"
        for group in optimiser.param_groups
    ]
    return f"{type(optimiser).__name__} on {'; '.join(groups)}"
