"""Batches by step: the seed and the step decide them, so that arms see the same ones and a run can be resumed.

`ArmBatches` feeds the built-in model, all arms at once; `SampledBatches` feeds a module the tool did not build, one arm
at a time, as `StreamedBatches` does. In a module's batch, inputs are a tensor, or a tuple or a mapping of tensors
with the samples along their first axis; targets are a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.state_file import digest_of
from ssmdiag.retrain.tasks import TargetLaw, TaskData

Inputs = Any
"""A tensor, or a tuple or mapping of tensors."""
Batch = tuple[Inputs, Tensor]
Loss = Literal["squared error", "cross-entropy"] | Callable[[Any, Tensor], Tensor]
ReadOut = Literal["every step", "last step", "mean"]
ALL = slice(None)


class Draw:
    """Which samples a step sees: a shuffle for each seed and epoch, independent of the previous one."""

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = min(size, count)
        self.epoch_steps = count // self.size
        self._order: dict[tuple[int, int], Tensor] = {}

    def at(self, seed: int, step: int) -> Tensor:
        """Return the positions of a step's samples, (batch,)."""
        epoch, place = divmod(step, self.epoch_steps)
        if (seed, epoch) not in self._order:
            self._order = {key: order for key, order in self._order.items() if key[1] == epoch}
            generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
            self._order[seed, epoch] = torch.randperm(self.count, generator=generator)
        return self._order[seed, epoch][place * self.size : (place + 1) * self.size]


class ArmBatches:
    """Batches of several arms."""

    def __init__(self, arms: Sequence[Arm], data: TaskData, size: int, device: str) -> None:
        self.seeds = [arm.seed for arm in arms]
        self.inputs, self.targets = data.inputs, data.targets
        self.draw = Draw(len(data.inputs), size)
        self.device = device

    def at(self, step: int, arms: slice = ALL, samples: slice = ALL) -> tuple[Tensor, Tensor]:
        """Return inputs (arm, batch, …) and targets of a step, or of some arms and the first samples of it."""
        index = torch.stack([self.draw.at(seed, step)[samples] for seed in self.seeds[arms]])
        return self.inputs[index].to(self.device), self.targets[index].to(self.device)


@dataclass(eq=False)
class SampledBatches:
    """Samples in memory, drawn as the built-in model's are."""

    train: Batch
    held_out: Batch
    size: int
    loss: Loss
    read_out: ReadOut = "every step"
    nothing: float | None = None
    """Loss of answering zero, or every class alike; None where that is not known."""
    casts: bool = True
    """Whether floating-point inputs are converted to the model's dtype."""
    kernel: Tensor | None = None
    """(lag,) float64: the memory kernel that would solve it, where there is one."""
    law: TargetLaw | None = None
    """The law by which that kernel decays, if it follows one."""
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        self.draw = Draw(len(self.train[1]), self.size)

    @classmethod
    def of(cls, data: TaskData, size: int) -> SampledBatches:
        """Return the batches of a task."""
        train, held_out = (data.inputs, data.targets), (data.validation_inputs, data.validation_targets)
        nothing = loss_of_nothing(data.validation_targets, data.outputs)
        return cls(train, held_out, size, data.loss, data.read_out, nothing, kernel=data.kernel, law=data.law)

    @property
    def length(self) -> int | None:
        """Steps of a sequence."""
        return length_of(self.train[0])

    @cached_property
    def _digest(self) -> str:
        return digest_of(self.train, self.held_out)

    def digest(self, seed: int, step: int) -> str:
        """Return a digest of the samples: the same for every seed and step."""
        return self._digest

    def at(self, seed: int, step: int) -> Batch:
        """Return the batch of a step."""
        index = self.draw.at(seed, step)
        return pick(self.train[0], index), self.train[1][index]

    def validation(self) -> Iterator[Batch]:
        """Yield the validation samples in batches."""
        inputs, targets = self.held_out
        for start in range(0, len(targets), self.size):
            part = slice(start, start + self.size)
            yield pick(inputs, part), targets[part]


def loss_of_nothing(targets: Tensor, classes: int | None) -> float | None:
    """Return the loss of answering zero, or every class alike."""
    if targets.is_floating_point():
        return float(targets.double().square().mean())
    return math.log(classes) if classes else None


def pick(inputs: Inputs, index: Any) -> Inputs:
    """Return some samples of a batch's inputs."""
    return each(inputs, lambda value: value[index])


def each(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs with every tensor changed."""
    if isinstance(inputs, Mapping):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(change(value) for value in inputs) if isinstance(inputs, tuple) else change(inputs)


def length_of(inputs: Inputs) -> int | None:
    """Return the size of the first input's second axis, which is time; None where it has no such axis."""
    first = next(iter(_by_name(inputs).values()))
    return first.shape[1] if first.ndim > 1 else None


def as_batch(batch: Any, kind: str) -> Batch:
    """Return (inputs, targets) of what an iterable gave. Raises ConfigurationError for anything else."""
    if not is_batch(batch):
        raise ConfigurationError(
            f"--data: a {kind} batch is {describe(batch)}.",
            expected="(inputs, targets): a tensor, or a tuple or mapping of tensors, and a tensor as long",
        )
    inputs, targets = batch
    return (tuple(inputs) if isinstance(inputs, list) else inputs), targets


def require_numbers(batch: Batch, what: str, loss: Loss) -> Batch:
    """Return a batch. Raises ConfigurationError where it contains NaN. Allowed are NaN in the targets of a user's loss,
    which may handle it, and infinities among several inputs, as in a mask.
    """
    inputs, targets = batch
    single = isinstance(inputs, Tensor)
    parts = [("inputs" if single else f"input {name}", value, single) for name, value in _by_name(inputs).items()]
    parts += [("targets", targets, True)] * (not callable(loss))
    for part, value, finite in parts:
        number = value.is_floating_point() or value.is_complex()
        wrong = int((~value.isfinite() if finite else value.isnan()).sum()) if number else 0
        if wrong:
            nans = int(value.isnan().sum())
            kind = "NaN" if nans == wrong else "infinite" if not nans else "NaN or infinite"
            raise ConfigurationError(
                f"--data: {wrong:,} of {value.numel():,} numbers in the {part} of the {what} are {kind}.",
                expected="numbers",
                advice="leave those samples out, or fill the gaps.",
            )
    return batch


def is_batch(batch: Any) -> bool:
    """Whether this is a pair of inputs and targets with the same number of samples."""
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor) and batch[1].ndim):
        return False
    tensors = list(_by_name(batch[0]).values())
    return bool(tensors) and all(isinstance(t, Tensor) and t.ndim and len(t) == len(batch[1]) for t in tensors)


def _by_name(inputs: Inputs) -> Mapping[Any, Any]:
    """Return the tensors of inputs, by their names or places."""
    if isinstance(inputs, Mapping):
        return inputs
    return dict(enumerate(inputs if isinstance(inputs, (tuple, list)) else [inputs]))


def describe(value: Any) -> str:
    """Return what a value is, in a few words: its type, and the shapes of the tensors in it.

    >>> describe((torch.zeros(2, 3), 1.0))
    'tuple of 2 (float32 (2, 3), float)'
    """
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {describe(entry)}" for key, entry in list(value.items())[:4])
        return f"{type(value).__name__} of {len(value)} ({inside})"
    if isinstance(value, (tuple, list)):
        inside = ", ".join(describe(entry) for entry in value[:4]) + ", …" * (len(value) > 4)
        return f"{type(value).__name__} of {len(value)} ({inside})"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {value.dtype} {tuple(value.shape)}"
    return "None" if value is None else type(value).__name__
