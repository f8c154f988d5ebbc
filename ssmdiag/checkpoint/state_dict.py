"""A state dict in memory as a `Checkpoint`: torch tensors, NumPy and JAX arrays, nested as programs nest them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmdiag.checkpoint.budget import shortened, train_step
from ssmdiag.checkpoint.checkpoint import Checkpoint, collect
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.torch_file import SETTINGS_KEYS, STATE_DICT_KEYS, STEP_KEYS, TRAINER_KEYS
from ssmdiag.checkpoint.live import copied, require_values, settings_in
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import first_of

_WIDEST = {"float128": "float64", "longdouble": "float64", "complex256": "complex128", "clongdouble": "complex128"}
"""Extended precision, which torch lacks; read in double."""


class StateDict:
    """Tensors and arrays of nested mappings, under their dotted names; copied on request."""

    name = format = "state dict"
    path: Path | None = None

    def __init__(self, state: Mapping[Any, Any]) -> None:
        key, weights = _weights_in(state)
        rest = {other: value for other, value in state.items() if other != key} if key is not None else {}
        found = dict(_leaves(weights, above=(id(state),)))
        self.arrays = {name: array for name, array in found.items() if _dtype_of(array) in DTYPE_BITS}
        self.notes = list(_remarks(key, found, self.arrays, rest))
        self.settings: Mapping[str, Any] = flatten(settings_in(next((rest[k] for k in SETTINGS_KEYS if k in rest), {})))
        self.train_step = train_step(next((rest[k] for k in STEP_KEYS if type(rest.get(k)) is int), None))
        if not self.arrays:
            raise CheckpointError(
                f"the mapping of {len(state):,} entries holds no tensors{_kinds(state)}.",
                expected="tensors or arrays by their names, as model.state_dict() gives them",
            )

    def names(self) -> list[str]:
        return list(self.arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[name].shape)

    def dtype(self, name: str) -> str:
        return _dtype_of(self.arrays[name])

    def load(self, name: str) -> Tensor:
        array = self.arrays[name]
        return copied(name, array if isinstance(array, Tensor) else _as_tensor(array, self.dtype(name)))

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: all of it is in memory."""


def read_state_dict(state: Mapping[Any, Any], *, config: Any = None) -> Checkpoint:
    """Return a state dict in memory as a checkpoint; `config` has settings as in config.json, or is a model's config.

    The weights may be under a key that trainers use, as `torch.load` returns them, and nested. Values are copied when a
    layer is read. Raises CheckpointError where there are no tensors, or none with values.
    """
    container = StateDict(state)
    require_values("the state dict", container.arrays.values())
    tensors = collect({container: container.names()})
    return Checkpoint(
        path=Path("state_dict"),
        format=container.format,
        tensors=tensors,
        size=sum(tensor.nbytes for tensor in tensors.values()),
        config=settings_in(config),
        hyper_parameters=container.settings,
        train_step=container.train_step,
        notes=tuple(container.notes),
    )


def _weights_in(state: Mapping[Any, Any]) -> tuple[Any, Any]:
    """Return the key of the mapping that holds the weights, and that mapping; None for the key if it is the whole."""
    direct = sum(_is_array(value) and bool(prod(value.shape)) and value.ndim > 0 for value in state.values())
    for key in STATE_DICT_KEYS:
        inner = state.get(key)
        inner = inner.state_dict() if isinstance(inner, nn.Module) else inner
        if isinstance(inner, Mapping) and sum(1 for _ in _leaves(inner)) > direct:
            deeper, weights = _weights_in(inner)
            return key, weights if deeper in ("state_dict", "params") else inner
    return None, {key: value for key, value in state.items() if key not in TRAINER_KEYS}


def _leaves(tree: Any, path: tuple[str, ...] = (), above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every tensor and array of nested mappings and lists under its dotted name."""
    if id(tree) in above:
        return
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        if _is_array(value):
            yield ".".join((*path, str(key))), value
        elif isinstance(value, nn.Module):
            yield from _leaves(value.state_dict(), (*path, str(key)), above)
        elif isinstance(value, (Mapping, list, tuple)):
            yield from _leaves(value, (*path, str(key)), (*above, id(tree)))


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or all(hasattr(value, name) for name in ("__array__", "shape", "dtype"))


def _dtype_of(array: Any) -> str:
    name = str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    return _WIDEST.get(name, name)


def _as_tensor(array: Any, dtype: str) -> Tensor:
    """Return an array's values; the types of ml_dtypes, which NumPy lacks, by their bits."""
    import numpy as np

    values = np.asarray(array)
    if dtype == "bfloat16" or dtype.startswith("float8"):
        bits = np.array(values, order="C").view(np.int16 if dtype == "bfloat16" else np.uint8)
        return torch.from_numpy(bits).view(getattr(torch, dtype))
    return torch.from_numpy(np.array(values, dtype=dtype, order="C"))


def _remarks(key: Any, found: Mapping[str, Any], read: Mapping[str, Any], rest: Mapping[Any, Any]) -> Iterator[str]:
    others = [
        shortened(repr(name))
        for name, value in rest.items()
        if name not in TRAINER_KEYS
        and (_is_array(value) or (isinstance(value, (Mapping, list)) and any(_leaves(value))))
    ]
    if others:
        yield f"the weights under {key!r} were read; tensors under {', '.join(others)} were not"
    if unread := [name for name in found if name not in read]:
        yield f"{len(unread):,} arrays of other types were left out: {first_of(unread)}"


def _kinds(state: Mapping[Any, Any]) -> str:
    kinds = sorted({type(value).__name__ for value in state.values()})
    return f", but {first_of(kinds)}" if kinds else ""
