"""A tree of mappings whose leaves are arrays, as JAX programs save it: the weights in it, and what is beside them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from ssmdiag.checkpoint.budget import Allowance, shortened, train_step
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.interface import Tensor
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry, TensorTable, read_values
from ssmdiag.checkpoint.names import LONGEST_NAME, Path, path_name
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.printable import first_of

WEIGHTS_KEYS = ("params", "target")
"""Keys of the weights in a TrainState, the variables of a module and flax.optim's Optimizer."""
WRAPPER_KEYS = ("state", "train_state", "model", "optimizer")
"""Keys under which scripts put one of those."""
OPTIMIZER_KEYS = frozenset({"opt_state", "optimizer_state"})
"""Keys of moments, which have the names of weights."""
BOX = "value"
"""The one key of what flax puts a weight into: Partitioned, the variables of an nnx.State."""
DEEPEST_WRAPPER = 3
MOST_CHARACTERS = 16 << 20
"""Of all names together."""


class JaxTree(TensorTable):
    """A container of such a tree; a format reads it and calls `take`."""

    optimizer: Any = None
    """The tree of the optimiser's state, where it was saved with the weights."""

    def take(self, tree: Mapping[str, Any]) -> None:
        """Fill in the weights, what is beside them, the step and the remarks. Raises TornError."""
        key, weights, rest = split(tree)
        arrays = by_name(weights)
        self.entries = {name: array for name, array in arrays.items() if array.dtype in DTYPE_BITS}
        self.notes += remarks(key, arrays, self.entries, rest)
        self.settings = flatten({name: value for name, value in rest.items() if name not in OPTIMIZER_KEYS})
        self.optimizer = next((rest[name] for name in sorted(OPTIMIZER_KEYS) if name in rest), None)
        step = rest.get("step", tree.get("step"))
        if isinstance(step, Entry) and step.dtype.startswith(("int", "uint")):
            step = self.number(step)
        self.train_step = train_step(step)

    def number(self, stored: Any) -> float | None:
        """Return a number that is stored as one, or as an array of one, which TrainState has after its first step."""
        if isinstance(stored, (int, float)) and not isinstance(stored, bool):
            return stored if math.isfinite(stored) else None
        if not isinstance(stored, Entry) or prod(stored.shape) != 1 or stored.dtype not in DTYPE_BITS:
            return None
        value = self.read(stored).flatten()[0].item()
        return value if isinstance(value, (int, float)) and math.isfinite(value) else None

    def read(self, array: Entry) -> Tensor:
        """Return the values of one array; raises the exceptions in `broken`."""
        return read_values(self.source, array)

    def values(self, name: str) -> Tensor:
        return self.read(self.entries[name])


def split(tree: Mapping[str, Any], depth: int = 0) -> tuple[str, Any, Mapping[str, Any]]:
    """Return the key of the weights ("" for none), the weights, and what is beside them."""
    for key in WEIGHTS_KEYS:
        if isinstance(tree.get(key), dict) and any(leaves(tree[key])):
            return key, tree[key], {name: value for name, value in tree.items() if name != key}
    for key in WRAPPER_KEYS if depth < DEEPEST_WRAPPER else ():
        if isinstance(tree.get(key), dict):
            inner, weights, rest = split(tree[key], depth + 1)
            if inner:
                beside = {name: value for name, value in tree.items() if name != key}
                return f"{key}.{inner}", weights, {**beside, **rest}
    beside = {key: value for key, value in tree.items() if key in OPTIMIZER_KEYS or _is_step(key, value)}
    return "", {key: value for key, value in tree.items() if key not in beside}, beside


def _is_step(key: str, value: Any) -> bool:
    return key == "step" and isinstance(value, Entry) and value.shape == ()


def leaves(tree: Any) -> Iterator[tuple[str, Entry]]:
    """Yield every array under its dotted name, out of its box. Raises TornError for names longer than any model's."""
    left = Allowance(MOST_CHARACTERS)
    waiting: list[tuple[Path, Any]] = [(None, tree)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, Entry):
            name = path_name(path)
            if len(name) > LONGEST_NAME:
                raise TornError(f"the name of an array has {len(name):,} characters")
            if not left.take(len(name)):
                raise TornError(f"the names of its arrays have more than {MOST_CHARACTERS:,} characters")
            yield name or "array", node
        elif isinstance(node, (dict, list)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            below = [((path, key), item) for key, item in items if isinstance(item, (Entry, dict, list))]
            boxed = path is not None and len(node) == 1 and isinstance(node, dict) and isinstance(node.get(BOX), Entry)
            waiting += [(path, below[0][1])] if boxed else reversed(below)


def by_name(tree: Any) -> dict[str, Entry]:
    """Return every array by its name. Raises TornError where two have one name."""
    arrays: dict[str, Entry] = {}
    for name, array in leaves(tree):
        if arrays.setdefault(name, array) is not array:
            raise TornError(f"two arrays are called {shortened(name)}")
    return arrays


def remarks(key: str, arrays: Mapping[str, Entry], read: Mapping[str, Entry], rest: Mapping[str, Any]) -> list[str]:
    """Return remarks on the arrays that were not read: those of other types, and those beside the weights."""
    notes = []
    if unread := sorted({array.dtype for name, array in arrays.items() if name not in read}):
        count = len(arrays) - len(read)
        notes.append(f"{count:,} array{'s' * (count > 1)} of {', '.join(map(shortened, unread[:3]))} not read")
    beside = (name for name, value in rest.items() if name not in OPTIMIZER_KEYS and not _is_step(name, value))
    others = [name for name in beside if any(leaves(rest[name]))]
    if others:
        some = first_of(list(map(shortened, others)))
        notes.append(f"the weights under {key!r} were read; arrays under {some} were not")
    return notes
