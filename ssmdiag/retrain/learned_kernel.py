"""The linear memory kernel a trained model has learned, to compare with the target kernel.

    K̂(s) = mean over validation inputs of ∂y_T / ∂x_{T−s}

with y_T the answer at the last step. Of a linear model it is the kernel; of a nonlinear one the kernel of its best
linear approximation on white Gaussian inputs, where E[∂y_T/∂x_{T−s}] = E[y_T x_{T−s}] (Stein). P1's memory
function is the response to a step of input instead, which no sequence of these tasks contains.

Where the target kernel follows a law, that law is fitted to the learned kernel, with t₀ up to the last lag, and its
parameters are reported if it describes the kernel. (`inspect` chooses among all laws, which a decade of lags does not
determine.) The residual of each rival law is reported too: over few lags a rival may fit as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ssmdiag.assessment.memory import FLOAT32_FLOOR, lag_edges
from ssmdiag.decay.decay import NEPER_DB, Law, compare_decay
from ssmdiag.decay.gauss_newton import PARAMETERS
from ssmdiag.decay.grid import SHORTEST_OFFSET
from ssmdiag.decay.verdict import CONTRAST, MODEL_ERROR_DB, POWER_DB
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.results import LearnedKernel, LearnedLaw
from ssmdiag.retrain.tasks import TargetLaw, TaskData

SEQUENCES = 1_280
"""Validation sequences the derivative is a mean over, at most: the linear functionals have so many."""
AT_ONCE = 16_384
"""Steps of all sequences that go through the model at a time."""
DESCRIBES_DB = POWER_DB
"""Largest rms residual of a law that describes a learned kernel."""
_AT_BOUND = 1e-6


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


def fit_target_law(values: Tensor, noise: Tensor, asked: TargetLaw) -> LearnedLaw:
    """Return the target's law fitted to a learned kernel, both (lag,) float64; `noise` is its standard error."""
    edges = lag_edges(len(values))
    mean_square, floor = _means(values.square(), edges), _means(noise.square(), edges)
    floor = floor + FLOAT32_FLOOR * mean_square.amax()
    found = compare_decay(edges, mean_square[None], floor, context=len(values), offset_share=1.0)
    if not found.fitted[0]:
        return LearnedLaw(asked, False, found.channel(0).status.value)
    window = int(found.first[0]), int(found.last[0])
    residual = {law.value: NEPER_DB * float(fit.residual[0]) for law, fit in found.fits.items()}
    own = residual[asked.law]
    fit, free = found.fits[Law(asked.law)], PARAMETERS[asked.law]
    offset = float(fit.offset[0])
    bound = "offset" in free and not (1 + _AT_BOUND) * SHORTEST_OFFSET < offset < (1 - _AT_BOUND) * window[1]
    if reason := _objection(asked.law, residual, offset if bound else None):
        return LearnedLaw(asked, False, reason, window, residual, offset_at_bound=bound)
    # The binned law is itself known to MODEL_ERROR_DB only.
    widen = math.hypot(own, MODEL_ERROR_DB) / own if own else 1.0
    parameters: dict[str, float | None] = {}
    for name in free:
        # At a bound the optimum is not reached, and p depends on t₀. Without a residual the error is unknown.
        known = own and (not bound or name == "rate")
        parameters[name] = float(getattr(fit, name)[0])
        parameters[f"{name}_error"] = widen * float(getattr(fit, f"{name}_error")[0]) if known else None
    return LearnedLaw(asked, True, None, window, residual, offset_at_bound=bound, **parameters)


def _objection(law: str, residual: Mapping[str, float], bound: float | None) -> str | None:
    """Return why the law does not describe the kernel, or None; `bound` is the bound that t₀ stayed at."""
    own = residual[law]
    rival = min((name for name in residual if name != law), key=residual.__getitem__)
    nearer = own > CONTRAST * math.hypot(residual[rival], MODEL_ERROR_DB)
    if own <= DESCRIBES_DB and not nearer:
        return None
    if bound is not None:
        return f"t₀ is at its bound of {bound:,.3g} steps, and the law does not fit there"
    return f"{rival} fits much better" if nearer else "no law fits it"


def _means(values: Tensor, edges: Tensor) -> Tensor:
    """Return the mean over the lags of each bin."""
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])[edges]
    return sums.diff() / edges.diff()
