"""msgpack as flax.serialization writes it: a tree of mappings, read in one pass; values are skipped.

The layout is public (msgpack's own specification; flax/serialization.py): extension 1 is an array and 3 a NumPy scalar,
each a packed (shape, dtype name, bytes in C order); 2 is a complex number. An array above 1 GiB is a mapping with the
key `__msgpack_chunked_array__`, its shape and its pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import IO, Any

from ssmdiag.checkpoint.budget import Allowance, shortened
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.sequential import SequentialReader, TornError
from ssmdiag.checkpoint.formats.table import Entry
from ssmdiag.checkpoint.names import LONGEST_NAME
from ssmdiag.checkpoint.settings import LONGEST_TEXT

DEEPEST = 64
MOST_VALUES = 1_000_000
"""Most keys, numbers, texts and arrays in one file; an array counts as four plus its axes, and its key as one."""
MOST_AXES = 64
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _SCALAR = 1, 3
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}


def read_tree(file: IO[bytes], size: int) -> dict[str, Any]:
    """Return the tree, an `Entry` in place of each array; values that are no settings become None. Raises TornError."""
    reader = _Reader(file, size)
    tree = reader.value(0)
    if not isinstance(tree, dict):
        raise TornError("its top level is not a mapping")
    if reader.at != reader.end:
        raise TornError(f"{reader.end - reader.at:,} bytes follow its end")
    return tree


class _Reader(SequentialReader):
    def __init__(self, file: IO[bytes], size: int) -> None:
        super().__init__(file, size)
        self._left = Allowance(MOST_VALUES)

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise TornError(f"it is nested more than {DEEPEST} deep")
        if not self._left.take():
            raise TornError(f"it holds more than {MOST_VALUES:,} values")
        kind = self.read(1)[0]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind not in _SIZED:
            raise TornError(f"byte {kind:#x} is not a msgpack type")
        read, size = _SIZED[kind]
        return read(self, self.number(size) if isinstance(size, str) else size, depth)

    def mapping(self, count: int, depth: int) -> Any:
        if 2 * count > self.end - self.at:
            raise TornError(f"it ends within a mapping of {count:,}")
        content: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) not in (str, int):
                raise TornError("a key is neither text nor a number")
            key = str(key)
            if len(key) > LONGEST_NAME:
                raise TornError(f"a key has {len(key):,} characters")
            if key in content:
                raise TornError(f"the key {shortened(key)} occurs twice in one mapping")
            content[key] = self.value(depth + 1)
        return _joined(content) if _CHUNKED in content else content

    def sequence(self, count: int, depth: int) -> list[Any]:
        if count > self.end - self.at:
            raise TornError(f"it ends within a list of {count:,}")
        return [self.value(depth + 1) for _ in range(count)]

    def text(self, length: int, depth: int) -> str | None:
        if length > LONGEST_TEXT:
            self.skip(length)
            return None
        return self.read(length).decode()

    def blob(self, length: int, depth: int) -> None:
        self.skip(length)

    def extension(self, length: int, depth: int) -> Entry | None:
        kind = self.read(1)[0]
        end = self.at + length
        if end > self.end:
            raise TornError("it ends within an array")
        if kind not in (_ARRAY, _SCALAR):
            self.skip(length)
            return None
        if self.read(1) != b"\x93":
            raise TornError("an array is not a triple of shape, type and values")
        shape, dtype, values = self.value(DEEPEST - 1), self.value(DEEPEST), self.read(1)[0]
        if not _is_shape(shape) or not isinstance(dtype, str) or values not in _BYTES:
            raise TornError("an array without shape, type and values")
        size = self.number(_BYTES[values])
        start = self.at
        if start + size != end or (dtype in DTYPE_BITS and prod(shape) * DTYPE_BITS[dtype] != 8 * size):
            raise TornError(f"an array of shape {tuple(shape[:8])} and type {shortened(dtype)} has {size:,} bytes")
        self.skip(size)
        return Entry(tuple(shape), dtype, ((start, size),))


_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_SIZED: dict[int, tuple[Callable[[_Reader, int, int], Any], str | int]] = {
    **{0x80 + count: (_Reader.mapping, count) for count in range(16)},
    **{0x90 + count: (_Reader.sequence, count) for count in range(16)},
    **{0xA0 + length: (_Reader.text, length) for length in range(32)},
    **{byte: (_Reader.blob, size) for byte, size in _BYTES.items()},
    **{0xC7 + power: (_Reader.extension, size) for power, size in enumerate((">B", ">H", ">I"))},
    **{0xD4 + power: (_Reader.extension, 1 << power) for power in range(5)},
    **{0xD9 + power: (_Reader.text, size) for power, size in enumerate((">B", ">H", ">I"))},
    **{0xDC + power: (_Reader.sequence, size) for power, size in enumerate((">H", ">I"))},
    **{0xDE + power: (_Reader.mapping, size) for power, size in enumerate((">H", ">I"))},
}
"""First byte → how what follows is read, and its size or the format of its size."""


def _is_shape(shape: Any) -> bool:
    whole = isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    return whole and prod(n for n in shape if n) < 2**63


def _in_order(numbered: Any) -> list[Any]:
    """Return what flax makes of a tuple, {"0": …, "1": …}, as a list."""
    if isinstance(numbered, dict) and numbered.keys() == {str(number) for number in range(len(numbered))}:
        return [numbered[str(number)] for number in range(len(numbered))]
    return numbered if isinstance(numbered, list) else []


def _joined(content: Mapping[str, Any]) -> Entry:
    """Return one array made of its shape and its flat pieces."""
    shape, chunks = _in_order(content.get("shape")), _in_order(content.get("chunks"))
    if not chunks or not _is_shape(shape) or not all(isinstance(chunk, Entry) for chunk in chunks):
        raise TornError("an array in pieces lacks its shape or its pieces")
    if len({chunk.dtype for chunk in chunks}) > 1 or prod(shape) != sum(prod(chunk.shape) for chunk in chunks):
        raise TornError(f"the pieces of an array do not make one of shape {tuple(shape[:8])}")
    return Entry(tuple(shape), chunks[0].dtype, tuple(piece for chunk in chunks for piece in chunk.pieces))
