"""Modules that hold a state dict and compute nothing: families whose code cannot be installed here."""

from __future__ import annotations

from collections.abc import Mapping

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
