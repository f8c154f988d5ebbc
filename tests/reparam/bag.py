"""Modules that hold a state dict and compute nothing: families whose code cannot be installed here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Bag(nn.Module):
    """Submodules and parameters at the dotted names of a state dict, and settings as transformers has them."""

    def __init__(self, state: Mapping[str, Tensor], config: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.config = dict(config or {})
        for name, value in state.items():
            *path, last = name.split(".")
            part: nn.Module = self
            for element in path:
                if element not in part._modules:
                    part.add_module(element, nn.Module())
                part = part._modules[element]  # type: ignore[assignment]
            if value.is_floating_point() or value.is_complex():
                part.register_parameter(last, nn.Parameter(value.clone()))
            else:
                part.register_buffer(last, value.clone())


def total(module: nn.Module) -> Tensor:
    """Return a loss that every parameter has a gradient of."""
    parts = [getattr(part, name) for part, name in places(module)]
    return torch.stack([(value.abs() + value.real.sin() if value.is_complex() else value.sin()).sum() for value in parts]).sum()


def places(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Return every parameter as the model's own code reads it."""
    from ssmdiag.reparam.live import find_places

    return [place for place in find_places(module).values() if getattr(*place).is_floating_point() or getattr(*place).is_complex()]
