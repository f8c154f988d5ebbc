"""A saved optimiser: its parameter groups, with settings, names and shapes.

Read from the plain data of a pickle (`inert_pickle`): the values of the moments stay on disk, their
shapes are in the pickle. Where the file gives only numbers, `group_membership` finds the names.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ssmdiag.checkpoint.budget import Allowance
from ssmdiag.checkpoint.formats.inert_pickle import StandIn
from ssmdiag.checkpoint.formats.torch_archive import BROKEN, Storage, TensorRecord
from ssmdiag.checkpoint.names import LONGEST_NAME, MOST_ELEMENTS

Shape = tuple[int, ...]
Read = Callable[[Storage, int, int], bytes]


@dataclass(frozen=True)
class SavedGroup:
    """One group as saved in the file."""

    settings: Mapping[str, Any]
    parameters: tuple[Any, ...]
    """The parameters as the file gives them: integers, names or records of the tensors themselves."""
    shapes: tuple[Shape | None, ...]
    """Shape of each parameter, from its moments; None where it has none."""
    names: tuple[str, ...] | None = None
    """Name of each parameter, if the file gives names."""


@dataclass(frozen=True)
class SavedOptimizer:
    """One optimiser as saved in the file."""

    name: str | None
    groups: tuple[SavedGroup, ...]


DEEPEST, MOST_MAPPINGS = 6, 20_000
"""Depth to which the plain data of a file is searched for an optimiser."""
MOST_GROUPS, MOST_PARAMETERS = 10_000, 1_000_000
"""Most groups of one optimiser, and most parameters and settings in all of them: one group can be listed repeatedly."""
DEEPEST_VALUE, MOST_MOMENTS = 3, 64

MOMENTS = ("exp_avg", "momentum_buffer", "exp_avg_sq", "square_avg", "sum", "state1", "acc_delta", "variance")
"""Names that the usual optimisers give to moments with the shape of their parameter."""

FACTORS = (("exp_avg_sq_row", "exp_avg_sq_col", False), ("row_var", "col_var", True))
"""Adafactor's moments of a matrix, each a mean over one axis, and whether that axis is kept with length 1."""

_NESTED = (Mapping, list, tuple, StandIn)
_NUMPY_NUMBERS = {"f8": "<d", "f4": "<f", "f2": "<e", "i8": "<q", "i4": "<i"}
_NAMED = ("lr", "initial_lr", "weight_decay", "params", "param_names")


def find_optimizers(content: Any, read: Read) -> list[SavedOptimizer]:
    """Return the optimisers in the plain data of a pickle, wherever a trainer put them.

    Parameters
    ----------
    content
        Nested mappings, lists, stand-ins and tensor records.
    read
        Returns bytes of a storage; used only for learning rates that are stored as a tensor.
    """
    found: list[SavedOptimizer] = []
    left = Allowance(MOST_PARAMETERS)
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    for _ in range(DEEPEST):
        below: list[tuple[tuple[str, ...], Any]] = []
        for path, node in level:
            tree = node.state if isinstance(node, StandIn) else node
            if not isinstance(tree, (Mapping, list, tuple)) or id(tree) in seen or len(seen) > MOST_MAPPINGS:
                continue
            seen.add(id(tree))
            groups = _groups(tree, read, left) if isinstance(tree, Mapping) else ()
            if groups:
                found.append(SavedOptimizer(_name(path, node, groups), groups))
            elif len(below) < MOST_MAPPINGS:
                items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
                some = itertools.islice(items, MOST_MAPPINGS)
                below += [((*path, str(key)), value) for key, value in some if isinstance(value, _NESTED)]
        level = below
    return found


def name_by_partition(optimizer: SavedOptimizer, partitions: Any) -> SavedOptimizer | None:
    """Return a ZeRO optimiser with names, from DeepSpeed's `param_shapes`; None if the two do not fit.

    ZeRO joins the parameters of a group (stage 3: of parts of a group) into one flat tensor, which is
    what the optimiser numbers; `param_shapes` lists the names and shapes behind each flat tensor.
    """
    groups = []
    if not isinstance(partitions, (list, tuple)):
        return None
    left = Allowance(MOST_PARAMETERS)
    for group in optimizer.groups:
        members: dict[str, Any] = {}
        for number in group.parameters:
            if type(number) is not int or not 0 <= number < len(partitions):
                return None
            partition = partitions[number]
            if not isinstance(partition, Mapping) or not left.take(len(partition)):
                return None
            members.update(partition)
        names = tuple(map(str, members))
        if not all(map(_is_name, names)):
            return None
        shapes = tuple(_size(shape) for shape in members.values())
        groups.append(replace(group, parameters=names, shapes=shapes, names=names))
    return replace(optimizer, groups=tuple(groups))


def _size(shape: Any) -> Shape | None:
    return tuple(shape) if isinstance(shape, (tuple, list)) and all(type(n) is int for n in shape) else None


def _groups(tree: Mapping[Any, Any], read: Read, left: Allowance) -> tuple[SavedGroup, ...]:
    """Return the groups of an optimiser's state dict; none if it is not one."""
    groups = tree.get("param_groups")
    if isinstance(groups, (list, tuple)) and groups and all(isinstance(group, Mapping) for group in groups):
        lists = [value for group in groups for value in (group, group.get("params"), group.get("param_names"))]
        entries = sum(len(value) for value in lists if isinstance(value, (Mapping, list, tuple)))
        if len(groups) > MOST_GROUPS or not left.take(entries):
            return ()
        state = tree.get("state")
        return tuple(_group(group, state if isinstance(state, Mapping) else {}, read) for group in groups)
    if any(isinstance(key, str) and key.startswith("param_groups.") for key in tree):
        return tuple(_flattened(tree, read))
    return ()


def _group(group: Mapping[Any, Any], state: Mapping[Any, Any], read: Read) -> SavedGroup:
    members = group.get("params")
    parameters = tuple(members) if isinstance(members, (list, tuple)) else ()
    names = group.get("param_names", parameters)
    named = isinstance(names, (list, tuple)) and len(names) == len(parameters)
    return SavedGroup(
        settings=_settings(group, read),
        parameters=parameters,
        shapes=tuple(_shape(key, state) for key in parameters),
        names=tuple(names) if named and all(map(_is_name, names)) else None,
    )


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and len(name) <= LONGEST_NAME and name.count(".") < MOST_ELEMENTS


def _flattened(tree: Mapping[Any, Any], read: Read) -> Iterator[SavedGroup]:
    """Yield groups from the flat form of torch.distributed, `param_groups.NAME.lr` and `state.NAME.exp_avg`."""
    settings: dict[str, dict[str, Any]] = {}
    state: dict[str, dict[str, Any]] = {}
    for key, value in tree.items():
        kind, _, rest = key.partition(".") if isinstance(key, str) else ("", "", "")
        name, _, entry = rest.rpartition(".")
        if name and kind in ("param_groups", "state") and _is_name(name):
            (settings if kind == "param_groups" else state).setdefault(name, {})[entry] = value
    together: dict[str, list[str]] = {}
    for name, values in settings.items():
        settings[name] = _settings(values, read)
        together.setdefault(repr(sorted(settings[name].items())), []).append(name)
    for names in together.values():
        shapes = tuple(_shape(name, state) for name in names)
        yield SavedGroup(settings[names[0]], tuple(names), shapes, tuple(names))


def _shape(key: Any, state: Mapping[Any, Any]) -> Shape | None:
    """Return the shape of a parameter, from its moments."""
    if isinstance(key, TensorRecord):
        return key.shape
    kept = state.get(key) if isinstance(key, (int, str)) else None
    if not isinstance(kept, Mapping) or len(kept) > MOST_MOMENTS:
        return None
    for moment in MOMENTS:
        if isinstance(kept.get(moment), TensorRecord):
            return kept[moment].shape
    for rows, columns, dropped in FACTORS:
        row, column = kept.get(rows), kept.get(columns)
        if isinstance(row, TensorRecord) and isinstance(column, TensorRecord) and row.shape and column.shape:
            return (*(row.shape[:-1] if dropped else row.shape), column.shape[-1])
    sizes = {value.shape for value in kept.values() if isinstance(value, TensorRecord) and value.shape}
    return sizes.pop() if len(sizes) == 1 else None


def _settings(group: Mapping[Any, Any], read: Read) -> dict[str, Any]:
    plain = {str(key): plain_value(value, read) for key, value in group.items() if key not in ("params", "param_names")}
    return {key: value for key, value in plain.items() if value is not None}


def plain_value(value: Any, read: Read, depth: int = 0) -> Any:
    """Return a number, a word, or a short tuple of them; None for anything else."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if len(value) <= LONGEST_NAME else None
    if isinstance(value, (list, tuple)):
        if len(value) > 16 or depth >= DEEPEST_VALUE:
            return None
        items = tuple(plain_value(item, read, depth + 1) for item in value)
        return None if None in items else items
    try:
        if isinstance(value, TensorRecord) and value.shape in ((), (1,)) and not value.dtype.startswith("complex"):
            return value.load(read).item()
        # A NumPy scalar, as schedules compute: scalar(dtype("f8"), bytes).
        if isinstance(value, StandIn) and value.origin.endswith("multiarray.scalar"):
            kind, content = value.arguments
            return struct.unpack(_NUMPY_NUMBERS[kind.arguments[0]], content)[0]
    except (*BROKEN, OSError):
        return None
    return None


def number(group: SavedGroup, key: str) -> float | None:
    """Return one setting if it is a number."""
    value = group.settings.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def other_settings(group: SavedGroup) -> dict[str, Any]:
    """Return the settings that `OptimizerGroup` has no field for."""
    return {key: value for key, value in group.settings.items() if key not in _NAMED}


def _name(path: Sequence[str], node: Any, groups: Sequence[SavedGroup]) -> str | None:
    if isinstance(node, StandIn) and node.origin:  # the optimiser itself was pickled
        return node.origin.rpartition(".")[2]
    if len(path) > 1 and path[-2] == "optimizers" and not path[-1].isdigit():  # Composer files it under its class
        return path[-1]
    keys = set(groups[0].settings)
    if {"amsgrad", "decoupled_weight_decay"} <= keys:  # torch 2.7 and later
        return "AdamW" if groups[0].settings["decoupled_weight_decay"] else "Adam"
    return "SGD" if {"dampening", "nesterov"} <= keys else None
