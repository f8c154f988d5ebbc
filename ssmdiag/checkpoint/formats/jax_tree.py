"""A tree of mappings whose leaves are arrays, as JAX programs save it: the weights in it, and what is beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.budget import Allowance, shortened
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry
from ssmdiag.checkpoint.names import LONGEST_NAME, Path, path_name
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
