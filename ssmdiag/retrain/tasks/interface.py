"""The contract of a task: input sequences, their targets, and the loss that scores the answers.

A task is one module of this package with `TASKS`, a tuple of `Task`. Data are made on the CPU by a
generator of their own: a task never touches torch's global random state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from ssmdiag.retrain.memory_limit import free_memory, is_out_of_memory, saying_what_to_lower

BYTES_PER_NUMBER = 200
"""Memory that making one number of the inputs takes at most; the linear functionals' transforms are the largest."""
FEW = 2048
"""More sequences than any task makes for validation."""


@dataclass(frozen=True)
class TaskSettings:
    """What the user asks for; None leaves the choice to the task."""

    length: int | None = None
    """Steps of a sequence."""
    samples: int | None = None
    """Training sequences."""
    seed: int = 0
    """Of the data: every arm sees the same."""
    path: Path | None = None
    """File the data come from, for tasks that read one."""


@dataclass(frozen=True)
class TargetLaw:
    """The law by which a task's kernel decays, (1 + t/t₀)^−p e^−βt; parameters of a factor that it lacks are None."""

    law: Literal["exponential", "polynomial", "truncated"]
    exponent: float | None = None
    """p."""
    offset: float | None = None
    """t₀, steps."""
    rate: float | None = None
    """β, nats per step."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """Training and validation sequences, on the CPU."""

    inputs: Tensor
    """(sample, step, feature) float32, or (sample, step) int64 tokens."""
    targets: Tensor
    """(sample, step, output) float32; (sample,) or (sample, step) int64 classes."""
    validation_inputs: Tensor
    validation_targets: Tensor
    loss: Literal["squared error", "cross-entropy"]
    read_out: Literal["every step", "last step", "mean"]
    """Where the answer is read: at every step, at the last, or off the mean over steps."""
    outputs: int
    """Numbers, or classes, in one answer."""
    vocabulary: int | None = None
    """Number of tokens where inputs are tokens."""
    kernel: Tensor | None = None
    """(lag,) float64: the memory kernel that would solve it, where there is one."""
    law: TargetLaw | None = None
    """The law by which that kernel decays, if it follows one."""

    @property
    def length(self) -> int:
        return self.inputs.shape[1]

    @property
    def features(self) -> int:
        return 1 if self.vocabulary else self.inputs.shape[2]


@dataclass(frozen=True)
class Task:
    """One task."""

    name: str
    summary: str
    source: str
    """The paper or data set."""
    maker: Callable[[TaskSettings], TaskData]
    needs_path: bool = False

    def make(self, settings: TaskSettings) -> TaskData:
        """Return the data. Raises SsmdiagError with what would fit where memory does not hold them."""
        asked = {"--samples": settings.samples, "--length": settings.length}
        what = " ".join(f"{option} {number}" for option, number in asked.items() if number is not None)
        with saying_what_to_lower(
            f"making the data of --task {self.name}{f' with {what}' if what else ''}", lambda: self._fitting(settings)
        ):
            if (settings.samples or 1) * (settings.length or 1) >= 1 << 60:
                raise MemoryError
            return self.maker(settings)

    def _fitting(self, settings: TaskSettings) -> str:
        """Return options with which the data fit in the free memory."""
        free = free_memory()
        numbers = max(1, free // BYTES_PER_NUMBER)
        had = f"the {free / 2**30:.1f} GiB that are free"
        try:
            if (settings.length or 1) > numbers:
                raise MemoryError
            length = self.maker(replace(settings, samples=1)).length
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return f"--length {max(2, numbers // (2 * FEW))} with {FEW:,} samples fits in {had}."
        return f"--samples {max(1, numbers // length - FEW)} fits in {had}, or a smaller --length."
