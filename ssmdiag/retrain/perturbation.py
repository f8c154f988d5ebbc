"""Perturbation error E(β): the worst validation loss when noise of size β is on the trained recurrence (P1, §3.2).

    E(β) = max over draws of loss(w + β u),   u uniform in [−1, 1] for every mode

for β = 0 and 10⁻³·2ⁱ. w is the weight of Re λ = −f(w), as stored: the map f decides what a change of it does.
Frequencies and steps get no noise: it has the same effect under every map and would hide the effect of f. All arms
and all β get the same draws u. The maximum over draws is a lower bound of P1's sup over the ball.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median_high

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint.live import links_of, stored_tensor
from ssmdiag.reparam.parametrisations import Hold
from ssmdiag.reparam.weights import LiveRecurrence, find_recurrence, flatten_numbers, unflatten_numbers
from ssmdiag.retrain.gradients import validate
from ssmdiag.retrain.model import Ensemble
from ssmdiag.retrain.results import PerturbationCurve
from ssmdiag.retrain.tasks import TaskData

BETAS = (0.0, *(1e-3 * 2**i for i in range(11)))
"""To 1.02; larger noise is larger than the weights."""
DRAWS = 10
SEQUENCES = 256
"""Validation sequences a loss is taken over, at most."""


def perturbation_curve(
    ensemble: Ensemble,
    position: int,
    data: TaskData,
    *,
    betas: Sequence[float] = BETAS,
    draws: int = DRAWS,
    sequences: int = SEQUENCES,
) -> PerturbationCurve:
    """Return E(β) of one arm of an ensemble, which is left as it is. A loss that is not finite counts as infinite."""
    arm, trained = ensemble.arms[position], ensemble.state_dict(position)
    moved = Ensemble([arm] * draws, ensemble.settings, data, str(ensemble.device))
    for draw in range(draws):
        moved.load_state(draw, trained)
    part = replace(
        data,
        validation_inputs=data.validation_inputs[:sequences],
        validation_targets=data.validation_targets[:sequences],
    )
    rates = [name for name in trained if name.endswith(f".{ensemble.layer.rate}")]
    noise = {name: torch.stack([_noise(draw, trained[name], name) for draw in range(draws)]) for name in rates}
    losses: list[list[float]] = []
    for beta in betas:
        for name in rates:
            moved.parameters[name].detach().copy_(trained[name] + beta * noise[name])
        losses.append([point.loss for point in validate(moved, part, 0)])
    return _curve(betas, losses, len(part.validation_inputs), draws)


def module_perturbation_curve(
    module: nn.Module,
    loss: Callable[[int], tuple[float, int]],
    *,
    assume: Mapping[str, str] | None = None,
    betas: Sequence[float] = BETAS,
    draws: int = DRAWS,
    sequences: int = SEQUENCES,
) -> PerturbationCurve | None:
    """Return E(β) of a live module, which is left as it was.

    `loss` takes how many validation sequences to go through at most and returns the mean loss over them and how
    many they were. None where no weight of a rate can be moved: there is none, or `freeze` holds it.
    """
    weights = _rates_of(find_recurrence(module, assume=assume))
    if not weights:
        return None
    losses: list[list[float]] = []
    count = 0
    with torch.no_grad():
        trained = {name: flatten_numbers(stored).clone() for name, (stored, _) in weights.items()}
        try:
            for beta in betas:
                losses.append([])
                for draw in range(draws if beta else 1):
                    for name, (stored, entries) in weights.items():
                        noise = beta * _noise(draw, trained[name], name).to(stored.device, trained[name].dtype)
                        if entries is not None:
                            noise = torch.zeros_like(noise).index_copy(0, entries, noise[entries])
                        stored.copy_(unflatten_numbers(trained[name] + noise, stored))
                    value, count = loss(sequences)
                    losses[-1].append(value)
        finally:
            for name, (stored, _) in weights.items():
                stored.copy_(unflatten_numbers(trained[name], stored))
    return _curve(betas, losses, count, draws)


def _rates_of(found: LiveRecurrence) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the stored tensors of rates and which of their entries are rates; without those that `freeze` holds."""
    entries: dict[str, list[Tensor | None]] = {}
    for weight in found.weights:
        if weight.role == "rate" and not any(isinstance(link, Hold) for link in links_of(found.places[weight.name])):
            entries.setdefault(weight.name, []).append(weight.entries)
    weights: dict[str, tuple[Tensor, Tensor | None]] = {}
    for name, parts in entries.items():
        stored = stored_tensor(found.places[name]).detach()
        some = [part.to(stored.device) for part in parts if part is not None]
        weights[name] = stored, torch.cat(some) if len(some) == len(parts) else None
    return weights


def _curve(betas: Sequence[float], losses: Sequence[Sequence[float]], sequences: int, draws: int) -> PerturbationCurve:
    finite = [[loss if math.isfinite(loss) else math.inf for loss in each] for each in losses]
    return PerturbationCurve(tuple(betas), tuple(map(max, finite)), tuple(map(median_high, finite)), draws, sequences)


def _noise(draw: int, like: Tensor, name: str) -> Tensor:
    """Return a draw for one tensor, independent of other tensors."""
    seed = hashlib.sha256(f"{name} {draw}".encode()).digest()[:6]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    return 2 * torch.rand(like.shape, generator=generator) - 1
