"""flax msgpack (flax.serialization): finds the weights and the step in a tree of mappings whose leaves are arrays.

`msgpack` reads the tree and skips the values, which are read on request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from ssmdiag.checkpoint.budget import Allowance, shortened, train_step
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Source
from ssmdiag.checkpoint.formats.msgpack import read_tree
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry, TensorTable
from ssmdiag.checkpoint.names import LONGEST_NAME, Path, path_name
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import first_of

WEIGHTS_KEYS = ("params", "target")
"""Keys of the weights in a TrainState, the variables of a module and flax.optim's Optimizer."""
WRAPPER_KEYS = ("state", "train_state", "model", "optimizer")
"""Keys under which scripts put one of those."""
OPTIMIZER_KEYS = frozenset({"opt_state", "optimizer_state"})
"""Keys of moments, which have the names of weights."""
DEEPEST_WRAPPER = 3
MOST_CHARACTERS = 16 << 20
"""Of all names together."""


class FlaxFile(TensorTable):
    """One file of flax.serialization."""

    format = "flax msgpack"
    called = "array"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        try:
            with source.open() as file:
                tree = read_tree(file, source.size)
            key, weights, rest = _split(tree)
            arrays = _by_name(_leaves(weights))
        except (TornError, EOFError, UnicodeDecodeError, struct.error) as error:
            raise CheckpointError(
                f"{source.name} is torn or not a checkpoint of flax ({error}).",
                expected="what flax.serialization.to_bytes or msgpack_serialize writes",
                advice="save or download it again.",
            ) from error
        self.entries = {name: array for name, array in arrays.items() if array.dtype in DTYPE_BITS}
        if not self.entries:
            top = f" (its top level has {', '.join(map(shortened, list(tree)[:8]))})" if tree else ""
            raise CheckpointError(
                f"{source.name} is not a checkpoint of flax: msgpack without arrays of numbers{top}.",
                expected="flax.serialization.to_bytes(params)",
                advice="save the parameters.",
            )
        if unread := sorted({array.dtype for array in arrays.values()} - DTYPE_BITS.keys()):
            count = len(arrays) - len(self.entries)
            self.notes.append(f"{count:,} array{'s' * (count > 1)} of {', '.join(map(shortened, unread[:3]))} not read")
        others = [name for name, value in rest.items() if name not in OPTIMIZER_KEYS and any(_leaves(value))]
        if others:
            some = first_of(list(map(shortened, others)))
            self.notes.append(f"the weights under {key!r} were read; arrays under {some} were not")
        self.settings = flatten(rest)
        self.train_step = self._step(rest.get("step", tree.get("step")))

    def _step(self, value: Any) -> int | None:
        """Return the optimiser step: a number, or an array of one number, which TrainState has after its first step."""
        if isinstance(value, Entry) and value.shape == () and value.dtype.startswith(("int", "uint")):
            content = self.source.read(*value.pieces[0])
            value = int.from_bytes(content, "little", signed=value.dtype.startswith("int"))
        return train_step(value)


def _split(tree: Mapping[str, Any], depth: int = 0) -> tuple[str, Any, Mapping[str, Any]]:
    """Return the key of the weights ("" for none), the weights, and what is beside them."""
    for key in WEIGHTS_KEYS:
        if isinstance(tree.get(key), dict) and any(_leaves(tree[key])):
            return key, tree[key], {name: value for name, value in tree.items() if name != key}
    for key in WRAPPER_KEYS if depth < DEEPEST_WRAPPER else ():
        if isinstance(tree.get(key), dict):
            inner, weights, rest = _split(tree[key], depth + 1)
            if inner:
                beside = {name: value for name, value in tree.items() if name != key}
                return f"{key}.{inner}", weights, {**beside, **rest}
    return "", {key: value for key, value in tree.items() if key not in OPTIMIZER_KEYS}, {}


def _leaves(tree: Any) -> Iterator[tuple[str, Entry]]:
    """Yield every array under its dotted name. Raises TornError for names longer than any model's."""
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
            waiting += reversed(below)


def _by_name(leaves: Iterator[tuple[str, Entry]]) -> dict[str, Entry]:
    arrays: dict[str, Entry] = {}
    for name, array in leaves:
        if arrays.setdefault(name, array) is not array:
            raise TornError(f"two arrays are called {shortened(name)}")
    return arrays


def _recognises(look: FirstLook) -> bool:
    """Whether it begins with a mapping whose first key is text, and not with the length that begins safetensors."""
    head = look.head
    start = 1 if 0x81 <= head[0] <= 0x8F else {0xDE: 3, 0xDF: 5}.get(head[0], 0)
    kind = head[start : start + 1]
    if not start or not kind or head[4:9] == b"\0\0\0\0{":
        return False
    if 0xA1 <= kind[0] <= 0xBF:
        key = head[start + 1 :][: kind[0] & 0x1F]
    elif kind == b"\xd9":
        key = head[start + 2 :][: head[start + 1]] if len(head) > start + 1 else b""
    else:
        return False
    text = key.decode(errors="replace")
    return bool(key) and text.isprintable() and "\ufffd" not in text


FORMAT = Format(
    name="flax msgpack",
    recognises=_recognises,
    open=FlaxFile,
    suffixes=(".msgpack",),
    conversions={".eqx": "Equinox stores no names: numpy.savez the leaves under the names of their fields."},
)
