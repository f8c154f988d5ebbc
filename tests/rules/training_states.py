"""Checkpoints with the optimiser beside the weights, as a training script saves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.rules.healthy import ARCHITECTURES, initial_state

Group = Mapping[str, Any]


def save_training(
    path: Path,
    name: str,
    group_of: Callable[[str], int],
    groups: list[Group],
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    **settings: Any,
) -> Path:
    """Write model, optimiser after one step, and settings; `group_of` names the group of each parameter."""
    state = {key: torch.nn.Parameter(value) for key, value in initial_state(name).items() if value.is_floating_point()}
    split: list[dict[str, Any]] = [{**group, "params": []} for group in groups]
    for key, parameter in state.items():
        split[group_of(key)]["params"].append(parameter)
    kept = optimizer([group for group in split if group["params"]], lr=1e-3)  # type: ignore[call-arg]
    for parameter in state.values():
        parameter.grad = torch.ones_like(parameter)
    kept.step()
    tensors: dict[str, Tensor] = {key: parameter.detach() for key, parameter in state.items()}
    hyper_parameters = {**ARCHITECTURES[name].config, "optimizer": optimizer.__name__, **settings}
    torch.save(
        {"state_dict": tensors, "optimizer_states": [kept.state_dict()], "hyper_parameters": hyper_parameters}, path
    )
    return path
