"""Files of `torch.save`, zip and old format: the pickled object, with a record for each tensor.

torch does not unpickle them, and no code in the pickle is run (see `inert_pickle`); the bytes of a
tensor are read on request.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import IO, Any

from ssmdiag.checkpoint.budget import Allowance, shortened
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.inert_pickle import InertUnpickler, UnsafeName, inert, stand_in
from ssmdiag.checkpoint.formats.interface import Source, Tensor
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.zip_file import MOST_TIMES, extents_of, is_zip, open_zip, read_member, start_of
from ssmdiag.errors import CheckpointError, UnsafePickleError

_STORAGE_DTYPES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16",
    "ComplexDouble": "complex128", "ComplexFloat": "complex64",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
    "Untyped": "uint8",
}  # fmt: skip
MOST_AXES = 64
FLIPS = ("conj", "neg")
"""Views that torch stores as a flag instead of values."""
MOST_REPEATED = 2**16
"""Most values of a tensor that repeats those of a smaller storage, as `expand` makes it."""
MOST_PICKLE = 64 << 20
"""Most bytes of a pickle that unpacks to more than its file has."""
LONGEST_LINE, LONGEST_KEY = 1 << 20, 256
_BEFORE = 1024
"""Bytes that hold what stands before a member's content: a header, its name, and zeros up to a multiple of 64."""
_MAGIC = 0x1950A86A20F9469CFC6C
_OTHER_PICKLE = "a pickle that torch.save did not write"
_BIG_ENDIAN = "written on a big-endian machine, which is not supported"
UNREADABLE = stand_in("torch._utils", "_rebuild_qtensor")
"""Stand-in for quantised and other tensors that are not one strided run of numbers."""


class _Record:
    """A record that the pickle cannot change once it is made: BUILD would otherwise set its attributes."""

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Storage(_Record):
    """A run of bytes in the file, of one dtype."""

    dtype: str
    numel: int
    key: str


@dataclass(frozen=True, eq=False)
class TensorRecord(_Record):
    """The location of a tensor's values: a strided view into a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    flipped: frozenset[str] = frozenset()
    """`conj` and `neg`: views that torch stores as a flag instead of values."""

    @property
    def place(self) -> Hashable:
        """Identifies the values: equal for two records of one tensor."""
        return self.storage.key, self.offset, self.shape, self.stride

    def load(self, read: Callable[[Storage, int, int], bytes]) -> Tensor:
        """Return the values; `read` returns the bytes of a storage, by start and length."""
        import torch

        dtype = getattr(torch, self.dtype)
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        if prod(self.shape) > max(self.storage.numel, MOST_REPEATED):
            raise TornError(f"{prod(self.shape):,} values expanded from {self.storage.numel:,}")
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        width = DTYPE_BITS[self.dtype] // 8
        content = bytearray(read(self.storage, self.offset * width, span * width))
        values = torch.frombuffer(content, dtype=dtype).as_strided(self.shape, self.stride)
        values = values.conj() if "conj" in self.flipped else values
        return (-values if "neg" in self.flipped else values).resolve_conj()


def tensor_record(storage: Any, offset: Any, size: Any, stride: Any, dtype: str, metadata: Any = None) -> Any:
    """Return the record of one tensor; a stand-in for kinds that cannot be read."""
    if not isinstance(storage, Storage) or dtype not in DTYPE_BITS:
        return UNREADABLE()
    lists = isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list))
    fits = lists and len(size) == len(stride) <= MOST_AXES
    if not fits or any(type(n) is not int or not 0 <= n < 2**63 for n in (offset, *size, *stride)):
        raise TornError("a tensor with an impossible shape")
    span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    available = storage.numel * DTYPE_BITS[storage.dtype] // DTYPE_BITS[dtype]
    if (0 not in size and offset + span > available) or prod(n for n in size if n) > 2**48:
        raise TornError("a tensor larger than its storage")
    bits = metadata if isinstance(metadata, dict) else {}
    flipped = frozenset(key for key in FLIPS if bits.get(key))
    return TensorRecord(storage, offset, tuple(size), tuple(stride), dtype, flipped)


def _v2(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    return tensor_record(
        storage, offset, size, stride, getattr(storage, "dtype", ""), rest[2] if len(rest) > 2 else None
    )


def _v3(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any) -> Any:
    named = getattr(dtype, "origin", "").removeprefix("torch.")
    return tensor_record(storage, offset, size, stride, named, rest[0] if rest else None)


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    plain = any(function is KNOWN[f"torch._utils._rebuild_{name}"] for name in ("tensor", "tensor_v2", "tensor_v3"))
    few = isinstance(arguments, tuple) and len(arguments) < 16
    return function(*arguments) if plain and few else UNREADABLE()


KNOWN: dict[str, type] = {
    "torch._utils._rebuild_tensor": inert(_v2),
    "torch._utils._rebuild_tensor_v2": inert(_v2),
    "torch._utils._rebuild_tensor_v3": inert(_v3),
    "torch._utils._rebuild_parameter": inert(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": inert(lambda data, *_: data),
    "torch.nn.parameter.Parameter": inert(lambda data=None, *_: data),
    "torch._tensor._rebuild_from_type_v2": inert(_from_type),
}
"""Functions by which torch pickles tensors; each is replaced by one that records where the values are."""


class TorchZip:
    """A file in the zip format of torch.save, the default since 1.6."""

    format = "torch zip"

    def __init__(self, source: Source) -> None:
        self._source = source
        self._zip = open_zip(source)
        members = self._zip.namelist()
        if any(name.endswith("constants.pkl") for name in members):
            self.format = "TorchScript"
        pickled = next(name for name in members if name == "data.pkl" or name.endswith("/data.pkl"))
        self._prefix = pickled.removesuffix("data.pkl")
        order = f"{self._prefix}byteorder"
        if order in self._zip.NameToInfo and read_member(self._zip, order, 16) != b"little":
            raise TornError(_BIG_ENDIAN)
        size = source.size
        self._unpacking = Allowance(MOST_TIMES * max(MOST_PICKLE, size))
        content = read_member(self._zip, pickled, max(MOST_PICKLE, size))
        unpickler = InertUnpickler(io.BytesIO(content), KNOWN, self._storage, size)
        self.content = unpickler.load()
        self.names = tuple(unpickler.names)

    def read(self, storage: Storage, start: int, length: int) -> bytes:
        member = self._zip.getinfo(f"{self._prefix}data/{storage.key}")
        if start + length > member.file_size:
            raise TornError(f"ends after {member.file_size:,} of {start + length:,} bytes of a storage")
        if member.compress_type != zipfile.ZIP_STORED and not self._unpacking.take(start + length):
            raise TornError("packed so that reading it takes too long; unpack it and zip it without compression")
        if member.compress_type == zipfile.ZIP_STORED and length < member.file_size:
            return bytes(self._source.read(start_of(self._zip, member) + start, length))  # zipfile would read up to it
        with self._zip.open(member) as file:
            file.seek(start)
            content = file.read(length)
        if len(content) != length:
            raise TornError(f"ends after {len(content):,} of {length:,} bytes of a tensor")
        return content

    def pieces(self, record: TensorRecord) -> Iterable[tuple[int, int]]:
        """Return where a tensor's values are in the file, with all that must be read to reach them."""
        name = f"{self._prefix}data/{record.storage.key}"
        if (found := self._extents.get(name)) is None:
            return []
        start, length = found
        first, size = _span(record)
        if self._zip.getinfo(name).compress_type != zipfile.ZIP_STORED or size + 2 * _BEFORE >= length:
            return [found]
        return [(start, _BEFORE), (start + first, min(size + _BEFORE, length - first))]

    @cached_property
    def _extents(self) -> dict[str, tuple[int, int]]:
        return extents_of(self._zip)

    def _storage(self, pid: Any) -> Any:
        _, kind, key, _, numel = pid
        return _storage(kind, numel, key)


class TorchPickles:
    """A file in the old format: pickles one after another, then the storages."""

    format = "torch pickle, old format"

    def __init__(self, source: Source) -> None:
        self._start: dict[str, int] = {}
        self._source = source
        storages: dict[str, Storage] = {}

        def load_storage(pid: Any) -> Any:
            if pid[0] == "module":
                return pid[1]
            _, kind, key, _, numel, view = pid
            whole = storages.setdefault(_storage_key(key), _storage(kind, numel, key))
            if view is None or not isinstance(whole, Storage):
                return whole
            _, offset, length = view
            if type(offset) is not int or type(length) is not int or not 0 <= offset <= offset + length <= whole.numel:
                raise TornError("a view that reaches outside its storage")
            return replace(whole, key=f"{whole.key}@{offset}", numel=length)

        with source.open() as opened:
            file = _Bounded(opened, source.size)
            if self._unpickle(file, load_storage) != _MAGIC:
                raise TornError(_OTHER_PICKLE)
            self._unpickle(file, load_storage)
            if not self._unpickle(file, load_storage).get("little_endian", True):
                raise TornError(_BIG_ENDIAN)
            unpickler = InertUnpickler(file, KNOWN, load_storage, source.size)  # type: ignore[arg-type]
            self.content = unpickler.load()
            self._place(opened, self._unpickle(file, load_storage), storages)
        self.names = tuple(unpickler.names)

    def read(self, storage: Storage, start: int, length: int) -> bytes:
        key, _, view = storage.key.partition("@")
        at = self._start[key] + start + int(view or 0) * DTYPE_BITS[storage.dtype] // 8
        return bytes(self._source.read(at, length))

    def pieces(self, record: TensorRecord) -> Iterable[tuple[int, int]]:
        """Return where a tensor's values are in the file."""
        key, _, view = record.storage.key.partition("@")
        first, size = _span(record)
        return [(self._start[key] + int(view or 0) * DTYPE_BITS[record.storage.dtype] // 8 + first, size)]

    def _place(self, file: IO[bytes], keys: Iterable[Any], storages: dict[str, Storage]) -> None:
        """Find where each storage starts: eight bytes of length, then its values."""
        keys = list(keys)
        self._source.prefetch(_lengths_in(file.tell(), [storages[_storage_key(key)] for key in keys]))
        for key in keys:
            storage = storages[_storage_key(key)]
            (numel,) = struct.unpack("<q", file.read(8))
            self._start[storage.key] = file.tell()
            if numel != storage.numel or file.tell() + numel * DTYPE_BITS[storage.dtype] // 8 > self._source.size:
                raise TornError(f"ends within the values of storage {key}")
            file.seek(numel * DTYPE_BITS[storage.dtype] // 8, 1)

    def _unpickle(self, file: _Bounded, load_storage: Callable[[Any], Any]) -> Any:
        return InertUnpickler(file, KNOWN, load_storage, self._source.size).load()  # type: ignore[arg-type]


def _lengths_in(start: int, storages: Iterable[Storage]) -> Iterator[tuple[int, int]]:
    """Yield where the lengths stand that begin each of some storages, as start and length."""
    for storage in storages:
        yield start, 8
        start += 8 + storage.numel * DTYPE_BITS[storage.dtype] // 8


class _Bounded:
    """A file whose `read` allocates no memory for bytes beyond its end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size

    def read(self, length: int) -> bytes:
        if length > self._size - self._file.tell():
            raise EOFError("its pickle ends early")
        return self._file.read(length)

    def readline(self) -> bytes:
        return self._file.readline(LONGEST_LINE)


def _span(record: TensorRecord) -> tuple[int, int]:
    """Return where a tensor's values are in its storage, as start and length in bytes."""
    width = DTYPE_BITS[record.dtype] // 8
    numbers = 1 + sum((size - 1) * step for size, step in zip(record.shape, record.stride, strict=True))
    return record.offset * width, 0 if 0 in record.shape else numbers * width


def _storage_key(key: Any) -> str:
    if not isinstance(key, (str, int)) or len(str(key)) > LONGEST_KEY:
        raise TornError("a storage with an impossible name")
    return str(key)


def _storage(kind: Any, numel: Any, key: Any) -> Any:
    name = getattr(kind, "origin", "").rpartition(".")[2].removesuffix("Storage")
    if name not in _STORAGE_DTYPES:  # quantised
        return UNREADABLE()
    if type(numel) is not int or not 0 <= numel < 2**60:
        raise TornError("a storage with an impossible size")
    return Storage(_STORAGE_DTYPES[name], numel, _storage_key(key))


BROKEN = (
    TornError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, TypeError,
    KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError, StopIteration, MemoryError, OverflowError,
)  # fmt: skip
"""Exceptions that reading a damaged or forged file can raise."""


def open_archive(source: Source) -> TorchZip | TorchPickles:
    """Return the content that torch.save wrote. Raises CheckpointError; UnsafePickleError where it calls for code."""
    try:
        return TorchZip(source) if is_zip(source) else TorchPickles(source)
    except UnsafeName as error:
        raise UnsafePickleError(
            f"{source.name} is refused: its pickle calls for {error.name}. Nothing of it was run.",
            expected="tensors and plain settings",
            advice="ask whoever made the file for a .safetensors; do not torch.load this one.",
        ) from error
    except BROKEN as error:
        raise CheckpointError(
            f"{source.name} is torn or not a torch checkpoint ({shortened(str(error) or type(error).__name__, 200)}).",
            expected="what torch.save writes",
            advice="numpy.savez('model.npz', **arrays) keeps the names of arrays that were pickled."
            if str(error) == _OTHER_PICKLE
            else "save or download it again.",
        ) from error
