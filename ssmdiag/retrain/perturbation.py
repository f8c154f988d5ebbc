"""Perturbation error E(β): the worst validation loss when noise of size β is on the trained recurrence (P1, §3.2).

    E(β) = max over draws of loss(w + β u),   u uniform in [−1, 1] for every mode

for β = 0 and 10⁻³·2ⁱ. w is the weight of Re λ = −f(w), as stored: the map f decides what a change of it does.
Frequencies and steps are left as they are; noise on them does the same under every map, and hides it. All arms
and all β get the same draws u. P1's sup over the ball is approached from below.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from ssmdiag.retrain.model import Ensemble, ModelSettings
from ssmdiag.retrain.results import ArmResult, PerturbationCurve
from ssmdiag.retrain.training import validate

if TYPE_CHECKING:
    from ssmdiag.retrain.tasks import TaskData

BETAS = (0.0, *(1e-3 * 2**i for i in range(11)))
"""To 1.02; larger noise is larger than the weights."""
DRAWS = 10
SEQUENCES = 256
"""Validation sequences a loss is taken over, at most."""


def perturbation_curve(
    result: ArmResult,
    data: TaskData,
    settings: ModelSettings,
    *,
    device: str = "cpu",
    betas: Sequence[float] = BETAS,
    draws: int = DRAWS,
    sequences: int = SEQUENCES,
) -> PerturbationCurve | None:
    """Return E(β) of a trained arm from its last checkpoint; None where it diverged or has none.

    A loss that is not finite counts as infinite.
    """
    if result.final_loss is None or not result.checkpoints:
        return None
    ensemble = Ensemble([result.arm] * draws, settings, data, device)
    trained = load_file(result.checkpoints[-1])
    for draw in range(draws):
        ensemble.load_state(draw, trained)
    part = replace(
        data,
        validation_inputs=data.validation_inputs[:sequences],
        validation_targets=data.validation_targets[:sequences],
    )
    rates = [name for name in ensemble.parameters if name.endswith(f".{ensemble.layer.rate}")]
    noise = {name: torch.stack([_noise(draw, trained[name], name) for draw in range(draws)]) for name in rates}
    worst, typical = [], []
    for beta in betas:
        for name in rates:
            ensemble.parameters[name].detach().copy_(trained[name] + beta * noise[name])
        losses = [point.loss if math.isfinite(point.loss) else math.inf for point in validate(ensemble, part, 0)]
        worst.append(max(losses))
        typical.append(sorted(losses)[draws // 2])
    return PerturbationCurve(tuple(betas), tuple(worst), tuple(typical), draws, len(part.validation_inputs))


def _noise(draw: int, like: torch.Tensor, name: str) -> torch.Tensor:
    """Return a draw for one tensor, the same whatever other tensors there are."""
    seed = hashlib.sha256(f"{name} {draw}".encode()).digest()[:6]
    generator = torch.Generator().manual_seed(int.from_bytes(seed, "little"))
    return 2 * torch.rand(like.shape, generator=generator) - 1
