"""The linear memory kernel a trained model has learned, to compare with the target kernel.

    K̂(s) = mean over validation inputs of ∂y_T / ∂x_{T−s}

with y_T the answer at the last step. Of a linear model it is the kernel; of a nonlinear one the kernel of its best
linear approximation on white Gaussian inputs, where E[∂y_T/∂x_{T−s}] = E[y_T x_{T−s}] (Stein). P1's memory
function is the response to a step of input instead, which no sequence of these tasks contains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmdiag.retrain.learned_law import fit_target_law
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.results import LearnedKernel

if TYPE_CHECKING:
    from ssmdiag.retrain.tasks import TargetLaw, TaskData

SEQUENCES = 1_280
"""Validation sequences the derivative is a mean over, at most: the linear functionals have so many."""
AT_ONCE = 16_384
"""Steps of all sequences that go through the model at a time."""


def learned_kernel(ensemble: Ensemble, position: int, data: TaskData) -> LearnedKernel | None:
    """Return the kernel of one arm of an ensemble; None where the task has none to compare it with."""
    if data.kernel is None:
        return None
    some = slice(position, position + 1)
    own = {name: value[some].detach() for name, value in ensemble.parameters.items()}
    inputs = data.validation_inputs[:SEQUENCES].to(ensemble.device)
    values, noise = mean_derivative(lambda x: ensemble.answers(x[None], some, own)[0], inputs)
    return compare_with(data.kernel, values, noise, data.law)


def mean_derivative(answer: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of ∂y_T/∂x_{T−s} over sequences and its standard error, each (lag,) float64.

    `answer` maps inputs (sample, step, 1) to answers (sample, step, 1).
    """
    total, squares = torch.zeros(2, inputs.shape[1], dtype=torch.float64)
    for some in inputs.split(max(1, AT_ONCE // inputs.shape[1])):
        x = some.detach().clone().requires_grad_()
        with torch.enable_grad():
            (derivative,) = torch.autograd.grad(answer(x)[:, -1].sum(), x)
        derivative = derivative[..., 0].double().cpu()
        total += derivative.sum(0)
        squares += derivative.square().sum(0)
    mean, count = total / len(inputs), len(inputs)
    variance = (squares / count - mean.square()).clamp(min=0)
    return mean.flip(0), (variance / max(count - 1, 1)).sqrt().flip(0)


def compare_with(
    target: Tensor, values: Tensor, noise: Tensor | None = None, law: TargetLaw | None = None
) -> LearnedKernel:
    """Return a kernel with its distance from the target, and the target's `law` fitted to it; all (lag,)."""
    distance = (values - target).norm() / target.norm()
    noise = torch.zeros_like(values) if noise is None else noise
    fitted = None if law is None else fit_target_law(values, noise, law)
    return LearnedKernel(tuple(values.tolist()), float(distance), fitted)
