"""AdamW (Loshchilov & Hutter, arXiv 1711.05101) for arms trained together: learning rates and decays differ by arm.

torch.optim.AdamW takes one number a tensor; here a tensor holds every arm. On one arm the two agree to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class ArmAdamW:
    """State and step of the optimiser.

    `lr` has a number for each arm by parameter, 0 to freeze it; `weight_decay` one for each arm.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], lr: Mapping[str, Sequence[float]], weight_decay: Sequence[float]
    ) -> None:
        self.parameters = dict(parameters)
        self.lr = {name: value.new_tensor(lr[name]) for name, value in self.parameters.items()}
        self.weight_decay = next(iter(parameters.values())).new_tensor(weight_decay)
        self.mean = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.square = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], scale: float, running: Tensor) -> None:
        """Take one step with the learning rates times `scale`, for the arms that are `running`, (arm,) bool."""
        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        for name, value in self.parameters.items():
            shape = (-1,) + (1,) * (value.ndim - 1)
            gradient = gradients[name]
            self.mean[name].lerp_(gradient, 1 - BETAS[0])
            self.square[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            rate = (scale * self.lr[name] * running).view(shape)
            kept = value * (1 - rate * self.weight_decay.view(shape))
            moved = kept.addcdiv_(self.mean[name] * (-rate / first), (self.square[name] / second).sqrt_().add_(EPSILON))
            # Selected, not multiplied by 0: frozen weights keep their bits even if a gradient is not finite.
            value.copy_(moved.where(rate != 0, value))

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors."""
        tensors = {f"mean.{name}": value for name, value in self.mean.items()}
        tensors |= {f"square.{name}": value for name, value in self.square.items()}
        return tensors | {"steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state back. Raises KeyError for a missing tensor."""
        for name in self.parameters:
            self.mean[name].copy_(state[f"mean.{name}"])
            self.square[name].copy_(state[f"square.{name}"])
        self.steps = int(state["steps"])
