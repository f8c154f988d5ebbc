"""A live nn.Module as a `Checkpoint`, so that families read it as they read a file."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ssmdiag.checkpoint.checkpoint import Checkpoint, collect
from ssmdiag.checkpoint.wrapped import require_unsharded, unwrap, whole_values
from ssmdiag.errors import CheckpointError

LOAD_FIRST = "load its weights first: from_pretrained, or load_state_dict(…, assign=True)."
Place = tuple[nn.Module, str]
"""A submodule and the attribute that holds a tensor in it."""


class LiveModule:
    """Parameters and persistent buffers of a module, under the names its plain state dict has.

    A tensor under a torch parametrisation has its own name, and the value that the model reads.
    """

    format = "live module"
    train_step: int | None = None
    path: Path | None = None

    def __init__(self, module: nn.Module, value: Callable[[str, Tensor], Tensor] | None = None) -> None:
        self.name = type(module).__name__.removeprefix("Parametrized")
        self.notes: list[str] = []
        self.settings: Mapping[str, Any] = {}
        self.places = find_places(module)
        self._value = value
        self._meta = {name: _evaluate(place).to("meta") for name, place in self.places.items()}

    def names(self) -> list[str]:
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._meta[name].shape)

    def dtype(self, name: str) -> str:
        return str(self._meta[name].dtype).removeprefix("torch.")

    def load(self, name: str) -> Tensor:
        values = _evaluate(self.places[name])
        # Values already read must not change with training.
        return self._value(name, values) if self._value else with_values(name, values).clone()

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: all of it is in memory."""


def read_module(module: nn.Module, *, config: Any = None) -> Checkpoint:
    """Return a live module as a checkpoint: `ssmdiag.diagnose(ssmdiag.read_module(model, config=settings))`.

    Values are copied on request: the checkpoint follows the training, values read earlier do not. `config` has
    settings as in config.json, or is a model's config; by default it is `module.config`, if there is one. The model may
    be under DistributedDataParallel, torch.compile and parametrisations. Raises CheckpointError where it is sharded, or
    none of its tensors has values.
    """
    require_unsharded(module)
    module = unwrap(module)
    container = LiveModule(module, copied)
    require_values(container.name, map(stored_tensor, container.places.values()))
    return as_checkpoint(container, module, config)


def as_checkpoint(container: LiveModule, module: nn.Module, config: Any = None) -> Checkpoint:
    """Return the checkpoint of one live container."""
    tensors = collect({container: container.names()})
    return Checkpoint(
        path=Path(container.name),
        format=container.format,
        tensors=tensors,
        size=sum(tensor.nbytes for tensor in tensors.values()),
        config=settings_of(module) if config is None else settings_in(config),
    )


def copied(name: str, values: Tensor) -> Tensor:
    """Return a copy, which does not change with training. Raises CheckpointError for a tensor without values."""
    return whole_values(name, with_values(name, values).detach()).clone()


def with_values(name: str, values: Tensor) -> Tensor:
    """Return the tensor itself. Raises CheckpointError where it is on the meta device."""
    if values.device.type == "meta":
        raise CheckpointError(f"{name} is on the meta device: it has a shape and no values.", advice=LOAD_FIRST)
    return values


def require_values(name: str, tensors: Iterable[Any]) -> None:
    """Raise CheckpointError where all tensors are on the meta device; one layer of them costs that layer alone."""
    devices = [getattr(getattr(tensor, "device", None), "type", "cpu") for tensor in tensors]
    if devices and all(device == "meta" for device in devices):
        raise CheckpointError(
            f"{name} has names and shapes but no values: all of its {len(devices):,} tensors are on the meta device.",
            expected="a model whose weights are loaded",
            advice=LOAD_FIRST,
        )


def find_places(module: nn.Module) -> dict[str, Place]:
    """Return where every parameter and persistent buffer lives, by its plain dotted name."""
    places: dict[str, Place] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        if "parametrizations" in path.split("."):
            continue
        own = [name for name, value in part._parameters.items() if value is not None]
        own += [
            n for n, value in part._buffers.items() if value is not None and n not in part._non_persistent_buffers_set
        ]
        if parametrize.is_parametrized(part):
            own += list(part.parametrizations)
        places |= {f"{path}.{name}" if path else name: (part, name) for name in own}
    return places


def links_of(place: Place) -> list[nn.Module]:
    """Return the torch parametrisations a tensor is under, first to last."""
    part, name = place
    chains: Any = part.parametrizations if parametrize.is_parametrized(part, name) else {name: ()}
    return list(chains[name])


def stored_tensor(place: Place) -> Tensor:
    """Return the tensor an optimizer sees: the attribute itself, or `parametrizations.X.original`."""
    part, name = place
    chains: Any = part.parametrizations if parametrize.is_parametrized(part, name) else {}
    return chains[name].original if chains else getattr(part, name)


def owners_of(tensor: Tensor, places: Mapping[str, Place]) -> list[Place]:
    """Return every place that holds this very tensor: tied weights have several."""
    found = {(id(part), name): (part, name) for part, name in places.values() if stored_tensor((part, name)) is tensor}
    return list(found.values())


def _evaluate(place: Place) -> Tensor:
    with torch.no_grad():
        return getattr(*place).detach()


def settings_of(module: nn.Module) -> Mapping[str, Any]:
    """Return a model's settings; those of the model inside a LightningModule, or any other module around one."""
    own = settings_in(getattr(module, "config", None))
    inside = [found for part in module.children() if (found := settings_in(getattr(unwrap(part), "config", None)))]
    return own or (inside[0] if len(inside) == 1 else {})


def settings_in(config: Any) -> Mapping[str, Any]:
    """Return the settings in a config: transformers' own, a dataclass, a Namespace or a mapping; {} for others."""
    if isinstance(config, Mapping):
        return dict(config)
    if callable(getattr(config, "to_dict", None)):
        return dict(config.to_dict())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.asdict(config)
    return vars(config) if isinstance(config, Namespace) else {}
