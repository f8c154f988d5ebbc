"""flax msgpack (flax.serialization): a tree of mappings whose leaves are arrays, in one pass from front to back.

The layout is public (msgpack's own specification; flax/serialization.py): extension 1 is an array and 3 a NumPy scalar,
each a packed (shape, dtype name, bytes in C order); 2 is a complex number. An array above 1 GiB is a mapping with the
key `__msgpack_chunked_array__`, its shape and its pieces. Values are skipped, and read on request.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import IO, Any

from ssmdiag.checkpoint.budget import Allowance, shortened, train_step
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.interface import FirstLook, Format, Source, Tensor
from ssmdiag.checkpoint.names import LONGEST_NAME
from ssmdiag.checkpoint.settings import LONGEST_TEXT, flatten
from ssmdiag.errors import CheckpointError

WEIGHTS_KEYS = ("params", "target")
"""Keys of the weights in a TrainState, the variables of a module and flax.optim's Optimizer."""
WRAPPER_KEYS = ("state", "train_state", "model", "optimizer")
"""Keys under which scripts put one of those."""
OPTIMIZER_KEYS = frozenset({"opt_state", "optimizer_state"})
"""Keys of moments, which have the names of weights."""
DEEPEST, DEEPEST_WRAPPER = 64, 3
MOST_VALUES = 1_000_000
"""Most keys, numbers, texts and arrays in one file; an array counts as four plus its axes, and its key as one."""
MOST_AXES = 64
MOST_CHARACTERS = 16 << 20
"""Of all names together."""
_Path = tuple[Any, Any] | None
"""A path as (path before, key): names that are never needed take no memory."""
_CHUNKED = "__msgpack_chunked_array__"
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}
_SHORT_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_ARRAY, _SCALAR = 1, 3


class _TornError(Exception):
    """The file ends early, contradicts itself or exceeds a limit."""


@dataclass(frozen=True, slots=True)
class _Array:
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[tuple[int, int], ...]
    """Start in the file and number of bytes, for each piece in turn."""


class FlaxFile:
    """One file of flax.serialization."""

    format = "flax msgpack"

    def __init__(self, source: Source) -> None:
        self.path = source.path
        self.notes: list[str] = []
        self._source = source
        try:
            with source.open() as file:
                tree = _Reader(file, source.size).read_all()
            key, weights, rest = _split(tree)
            arrays = _by_name(_leaves(weights))
        except (_TornError, EOFError, UnicodeDecodeError, struct.error) as error:
            raise CheckpointError(
                f"{source.name} is torn or not a checkpoint of flax ({error}).",
                expected="what flax.serialization.to_bytes or msgpack_serialize writes",
                advice="save or download it again.",
            ) from error
        self._arrays = {name: array for name, array in arrays.items() if array.dtype in DTYPE_BITS}
        if not self._arrays:
            raise CheckpointError(
                f"{source.name} is not a checkpoint of flax: msgpack without arrays of numbers{_top_level(tree)}.",
                expected="flax.serialization.to_bytes(params)",
                advice="save the parameters.",
            )
        if unread := sorted({array.dtype for array in arrays.values()} - DTYPE_BITS.keys()):
            count = len(arrays) - len(self._arrays)
            self.notes.append(f"{count:,} array{'s' * (count > 1)} of {', '.join(map(shortened, unread[:3]))} not read")
        others = [name for name, value in rest.items() if name not in OPTIMIZER_KEYS and any(_leaves(value))]
        if others:
            some = ", ".join(map(shortened, others[:3])) + (" …" if len(others) > 3 else "")
            self.notes.append(f"the weights under {key!r} were read; arrays under {some} were not")
        self.settings: Mapping[str, Any] = flatten(rest)
        self.train_step = self._step(rest.get("step", tree.get("step")))

    def names(self) -> list[str]:
        return list(self._arrays)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays[name].shape

    def dtype(self, name: str) -> str:
        return self._arrays[name].dtype

    def load(self, name: str) -> Tensor:
        import torch

        array = self._arrays[name]
        dtype = getattr(torch, array.dtype)
        try:
            content = self._bytes(array)
        except (EOFError, OSError) as error:
            raise CheckpointError(
                f"{self._source.name}: array {name} cannot be read ({error}).",
                advice="save or download the file again.",
            ) from error
        if not content:
            return torch.empty(array.shape, dtype=dtype)
        return torch.frombuffer(content, dtype=dtype).reshape(array.shape)

    def _bytes(self, array: _Array) -> bytearray:
        first, *others = array.pieces
        content = self._source.read(*first)
        for piece in others:
            content += self._source.read(*piece)
        return content

    def _step(self, value: Any) -> int | None:
        """Return the optimiser step: a number, or an array of one number, which TrainState has after its first step."""
        if isinstance(value, _Array) and value.shape == () and value.dtype.startswith(("int", "uint")):
            value = int.from_bytes(self._bytes(value), "little", signed=value.dtype.startswith("int"))
        return train_step(value)


class _Reader:
    """Reads the file from front to back; every length is compared with the end of the file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._end = size
        self._at = 0
        self._left = Allowance(MOST_VALUES)

    def read_all(self) -> dict[str, Any]:
        """Return the tree, with the location of its values in place of each array."""
        tree = self._value(0)
        if not isinstance(tree, dict):
            raise _TornError("it holds no mapping")
        if self._at != self._end:
            raise _TornError(f"{self._end - self._at:,} bytes follow its end")
        return tree

    def _value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise _TornError(f"it is nested more than {DEEPEST} deep")
        if not self._left.take():
            raise _TornError(f"it holds more than {MOST_VALUES:,} values")
        kind = self._bytes(1)[0]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind <= 0x8F:
            return self._map(kind & 0xF, depth)
        if kind <= 0x9F:
            return self._list(kind & 0xF, depth)
        if kind <= 0xBF:
            return self._text(kind & 0x1F)
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind in _TEXTS:
            return self._text(self._number(_TEXTS[kind]))
        if kind in _LISTS:
            return self._list(self._number(_LISTS[kind]), depth)
        if kind in _MAPS:
            return self._map(self._number(_MAPS[kind]), depth)
        if kind in _BYTES:
            self._skip(self._number(_BYTES[kind]))
            return None
        if kind in _EXTENSIONS or kind in _SHORT_EXTENSIONS:
            return self._extension(_SHORT_EXTENSIONS.get(kind) or self._number(_EXTENSIONS[kind]), depth)
        raise _TornError(f"byte {kind:#x} begins nothing")

    def _map(self, count: int, depth: int) -> Any:
        if 2 * count > self._end - self._at:
            raise _TornError(f"it ends within a mapping of {count:,}")
        content: dict[str, Any] = {}
        for _ in range(count):
            key = self._value(depth + 1)
            if type(key) not in (str, int):
                raise _TornError("a key is neither text nor a number")
            key = str(key)
            if len(key) > LONGEST_NAME:
                raise _TornError(f"a key has {len(key):,} characters")
            if key in content:
                raise _TornError(f"the key {shortened(key)} stands twice in one mapping")
            content[key] = self._value(depth + 1)
        return _joined(content) if _CHUNKED in content else content

    def _list(self, count: int, depth: int) -> list[Any]:
        if count > self._end - self._at:
            raise _TornError(f"it ends within a list of {count:,}")
        return [self._value(depth + 1) for _ in range(count)]

    def _text(self, length: int) -> str | None:
        if length > LONGEST_TEXT:
            self._skip(length)
            return None
        return self._bytes(length).decode()

    def _number(self, format: str) -> Any:
        return struct.unpack(format, self._bytes(struct.calcsize(format)))[0]

    def _extension(self, length: int, depth: int) -> _Array | None:
        kind = self._bytes(1)[0]
        end = self._at + length
        if end > self._end:
            raise _TornError("it ends within an array")
        if kind not in (_ARRAY, _SCALAR):
            self._skip(length)
            return None
        if self._bytes(1) != b"\x93":
            raise _TornError("an array is no triple of shape, type and values")
        shape, dtype, values = self._value(DEEPEST - 1), self._value(DEEPEST), self._bytes(1)[0]
        if not _is_shape(shape) or not isinstance(dtype, str) or values not in _BYTES:
            raise _TornError("an array without shape, type and values")
        size = self._number(_BYTES[values])
        start = self._at
        if start + size != end or (dtype in DTYPE_BITS and prod(shape) * DTYPE_BITS[dtype] != 8 * size):
            raise _TornError(f"an array of shape {tuple(shape[:8])} and type {shortened(dtype)} has {size:,} bytes")
        self._skip(size)
        return _Array(tuple(shape), dtype, ((start, size),))

    def _bytes(self, length: int) -> bytes:
        if length > self._end - self._at:
            raise _TornError(f"it ends after {self._end:,} bytes, within a value")
        self._at += length
        content = self._file.read(length)
        if len(content) < length:
            raise _TornError("it became shorter while it was read")
        return content

    def _skip(self, length: int) -> None:
        if length > self._end - self._at:
            raise _TornError(f"it ends after {self._end:,} bytes, within a value")
        self._at += length
        self._file.seek(self._at)


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    return whole and prod(n for n in shape if n) < 2**63


def _in_order(numbered: Any) -> list[Any]:
    """Return what flax makes of a tuple, {"0": …, "1": …}, as a list."""
    if isinstance(numbered, dict) and numbered.keys() == {str(number) for number in range(len(numbered))}:
        return [numbered[str(number)] for number in range(len(numbered))]
    return numbered if isinstance(numbered, list) else []


def _joined(content: Mapping[str, Any]) -> _Array:
    """Return one array made of its shape and its flat pieces."""
    shape, chunks = _in_order(content.get("shape")), _in_order(content.get("chunks"))
    if not chunks or not _is_shape(shape) or not all(isinstance(chunk, _Array) for chunk in chunks):
        raise _TornError("an array in pieces lacks its shape or its pieces")
    if len({chunk.dtype for chunk in chunks}) > 1 or prod(shape) != sum(prod(chunk.shape) for chunk in chunks):
        raise _TornError(f"the pieces of an array do not make one of shape {tuple(shape[:8])}")
    return _Array(tuple(shape), chunks[0].dtype, tuple(piece for chunk in chunks for piece in chunk.pieces))


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


def _leaves(tree: Any) -> Iterator[tuple[str, _Array]]:
    """Yield every array under its dotted name. Raises _TornError for names longer than any model's."""
    left = Allowance(MOST_CHARACTERS)
    waiting: list[tuple[_Path, Any]] = [(None, tree)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, _Array):
            name = _name(path)
            if len(name) > LONGEST_NAME:
                raise _TornError(f"the name of an array has {len(name):,} characters")
            if not left.take(len(name)):
                raise _TornError(f"the names of its arrays have more than {MOST_CHARACTERS:,} characters")
            yield name or "array", node
        elif isinstance(node, (dict, list)):
            items = node.items() if isinstance(node, dict) else enumerate(node)
            below = [((path, key), item) for key, item in items if isinstance(item, (_Array, dict, list))]
            waiting += reversed(below)


def _by_name(leaves: Iterator[tuple[str, _Array]]) -> dict[str, _Array]:
    arrays: dict[str, _Array] = {}
    for name, array in leaves:
        if arrays.setdefault(name, array) is not array:
            raise _TornError(f"two arrays are called {shortened(name)}")
    return arrays


def _name(path: _Path) -> str:
    keys: list[str] = []
    while path is not None:
        path, key = path
        keys.append(str(key))
    return ".".join(reversed(keys))


def _top_level(tree: Mapping[str, Any]) -> str:
    return f" (its top level has {', '.join(map(shortened, list(tree)[:8]))})" if tree else ""


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
