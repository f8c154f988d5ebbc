"""Losses of the arms of an ensemble, and their gradients: a part of the batch at a time, or one part on each rank.

The gradient of the arms' summed loss is each arm's own, as arms do not mix; an infinite loss stays with its arm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.results import Point
from ssmdiag.retrain.tasks import TaskData

VALIDATION_STEPS = 16_384
"""Steps, over all sequences, validated at a time."""


def losses_of(answers: Tensor, targets: Tensor, data: TaskData) -> Tensor:
    """Return the mean loss of each arm, (arm,). Raises ValueError for shapes that do not belong together."""
    if data.loss == "squared error":
        if answers.shape != targets.shape:
            raise ValueError(f"answers are {tuple(answers.shape)}, targets {tuple(targets.shape)}")
        return (answers - targets).square().flatten(1).mean(1)
    classes = answers.shape[-1]
    each = functional.cross_entropy(answers.reshape(-1, classes), targets.reshape(-1), reduction="none")
    return each.view(len(answers), -1).mean(1)


def losses_and_gradients(
    ensemble: Ensemble, inputs: Tensor, targets: Tensor, data: TaskData, ranks: Ranks = ALONE
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return every arm's loss and its gradients, a part of the batch at a time where all of it would be too large.

    Each of several ranks computes a part of the batch: weighted by its size, the parts' means sum to the mean.
    """
    size = inputs.shape[1]
    if ranks.count > 1:
        part = ranks.part(size)
        if part.start == part.stop:
            raise ConfigurationError(f"a batch of {size} for {ranks.count} ranks.", expected="a sample for each rank")
        share = (part.stop - part.start) / size
        losses, gradients = _of_sequences(ensemble, inputs[:, part], targets[:, part], data, share)
        return ranks.sum(losses), {name: ranks.sum(gradient) for name, gradient in gradients.items()}
    at_once = ensemble.sequences_at_once(inputs.shape[2])
    if size <= at_once:
        return _of_sequences(ensemble, inputs, targets, data)
    total = torch.zeros(len(inputs), device=inputs.device)
    sums: dict[str, Tensor] = {}
    for start in range(0, size, at_once):
        part = slice(start, min(start + at_once, size))
        share = (part.stop - part.start) / size
        losses, gradients = _of_sequences(ensemble, inputs[:, part], targets[:, part], data)
        total += share * losses
        for name, gradient in gradients.items():
            sums[name] = sums[name].add_(gradient, alpha=share) if name in sums else share * gradient
    return total, sums


def _of_sequences(
    ensemble: Ensemble, inputs: Tensor, targets: Tensor, data: TaskData, share: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `share` times the losses, and the gradients of that."""
    losses, gradients = [], []
    for some in ensemble.pieces(*inputs.shape[1:3]):
        own = {name: value[some].detach().requires_grad_() for name, value in ensemble.parameters.items()}
        loss = share * losses_of(ensemble.answers(inputs[some], some, own), targets[some], data)
        gradients.append(torch.autograd.grad(loss.sum(), list(own.values())))
        losses.append(loss.detach())
    together = [torch.cat(parts) for parts in zip(*gradients, strict=True)]
    return torch.cat(losses), dict(zip(ensemble.parameters, together, strict=True))


@torch.no_grad()
def validate(ensemble: Ensemble, data: TaskData, step: int) -> list[Point]:
    """Return every arm's loss, and accuracy where there are classes, over the validation set."""
    arms, device = len(ensemble.arms), ensemble.device
    total, right, count = torch.zeros(arms, dtype=torch.float64), torch.zeros(arms, dtype=torch.float64), 0
    size = max(1, VALIDATION_STEPS // data.length)
    pieces = zip(data.validation_inputs.split(size), data.validation_targets.split(size), strict=True)
    answered = 0
    for inputs, targets in pieces:
        x = inputs.to(device).expand(arms, *inputs.shape)
        y = targets.to(device).expand(arms, *targets.shape)
        answers = ensemble.forward(x)
        total += len(inputs) * losses_of(answers, y, data).double().cpu()
        count += len(inputs)
        if data.loss == "cross-entropy":
            hits = answers.argmax(-1) == y
            right += hits.flatten(1).double().sum(1).cpu()
            answered += hits[0].numel()
    return [Point(step, float(total[k]) / count, float(right[k]) / answered if answered else None) for k in range(arms)]
