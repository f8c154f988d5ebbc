"""The file of a resumable state: plain values and tensors under a SHA-256; no pickle, so reading it runs nothing.

    ssmdiag retrain state 2       what it is, and the version of this layout
    SHA-256 and size              of the JSON
    JSON                          values, dtype and shape of every tensor, and the SHA-256 of what follows
    bytes                         of the tensors, one after another

A value is None, a bool, a number, a string, a tensor, or a list, tuple or mapping of values.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.saving import write

STATE_VERSION = 2
_MAGIC = "ssmdiag retrain state "
_LINE = 100
"""More bytes than a line of the head has."""
_MALFORMED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError,
)  # fmt: skip
"""What reading raises for a file with a valid digest that ssmdiag did not write; RecursionError is a RuntimeError."""
ANEW = "restore a copy of it, or delete it to start these arms anew."


def write_state(path: Path, values: Mapping[str, Any]) -> None:
    """Write a state whole, or leave the old one. Raises ConfigurationError for a value it cannot hold."""
    tensors: list[Tensor] = []
    known: dict[tuple[object, ...], int] = {}
    tree = {name: _encode(value, name, tensors, known) for name, value in values.items()}
    table = [[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors]
    parts = [bytes_of(tensor) for tensor in tensors]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    head = {"values": tree, "tensors": table, "sha256": digest.hexdigest()}
    text = json.dumps(head, separators=(",", ":")).encode()
    own = hashlib.sha256(text).hexdigest()
    write(path, f"{_MAGIC}{STATE_VERSION}\n{own} {len(text)}\n".encode(), text, *parts)


def read_state(path: Path, *, tensors: bool = True) -> dict[str, Any]:
    """Return a state, its tensors on the CPU; without `tensors` None stands for each, and their bytes are not read.

    Raises SsmdiagError for a file that is not a state, is of another version, or is damaged.
    """
    try:
        if not path.is_file():  # a pipe without a writer would block
            raise SsmdiagError(f"{path}: not a regular file.", expected="a resumable state", advice=ANEW)
        with path.open("rb") as file:
            head = _read_head(path, file)
            stored = _read_tensors(path, file, head) if tensors else None
            return {name: _decode(value, stored) for name, value in head["values"].items()}
    except OSError as error:
        raise SsmdiagError(
            f"{path}: cannot be read ({error.strerror or error}).", advice="give read permission, or another --output."
        ) from error
    except _MALFORMED as error:
        raise SsmdiagError(f"{path}: not a state to resume from ({type(error).__name__}).", advice=ANEW) from error


def _read_head(path: Path, file: BinaryIO) -> dict[str, Any]:
    """Return the JSON. Raises SsmdiagError where it is of another version, or not what was written."""
    first = file.readline(_LINE)
    version = first.decode("ascii", "replace").removeprefix(_MAGIC).strip()
    if first.startswith(b"PK"):
        version = "1"
    elif not first.startswith(_MAGIC.encode()):
        raise SsmdiagError(f"{path}: not a state to resume from.", advice=ANEW)
    if version != str(STATE_VERSION):
        raise SsmdiagError(
            f"{path}: a state of version {version!r}, saved by another version of ssmdiag.",
            expected=f"version {STATE_VERSION}",
            advice="resume it with that version, or delete it to start these arms anew.",
        )
    written, size = file.readline(_LINE).decode("ascii").split()
    text = file.read(int(size)) if 0 <= int(size) <= _left(file) else b""
    if hashlib.sha256(text).hexdigest() != written:
        raise _damaged(path)
    head: dict[str, Any] = json.loads(text)
    return head


def _read_tensors(path: Path, file: BinaryIO, head: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors behind the head. Raises SsmdiagError where they are not what was written."""
    types = [(getattr(torch, name), shape) for name, shape in head["tensors"]]
    sizes = [dtype.itemsize * math.prod(shape) for dtype, shape in types]
    if min(sizes, default=0) < 0 or sum(sizes) != _left(file):
        raise _damaged(path)
    digest, tensors = hashlib.sha256(), []
    for (dtype, shape), size in zip(types, sizes, strict=True):
        content = bytearray(size)
        file.readinto(content)  # type: ignore[attr-defined]
        digest.update(content)
        flat = torch.frombuffer(content, dtype=torch.uint8) if size else torch.empty(0, dtype=torch.uint8)
        tensors.append(flat.view(dtype).reshape(shape))
    if digest.hexdigest() != head["sha256"]:
        raise _damaged(path)
    return tensors


def _left(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _damaged(path: Path) -> SsmdiagError:
    return SsmdiagError(f"{path}: damaged: its size or its SHA-256 does not match.", advice=ANEW)


def _encode(value: Any, place: str, tensors: list[Tensor], known: dict[tuple[object, ...], int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized and not value.is_meta:
        # Tied weights stand under each of their names, and once in the file.
        key = (
            value.device,
            value.data_ptr(),
            value.dtype,
            value.shape,
            value.stride(),
            value.is_conj(),
            value.is_neg(),
        )
        if key not in known or not value.numel():
            known[key] = len(tensors)
            tensors.append(value.detach())
        return {"tensor": known[key]}
    if isinstance(value, list):
        return [_encode(entry, place, tensors, known) for entry in value]
    if isinstance(value, tuple):
        return {"tuple": [_encode(entry, place, tensors, known) for entry in value]}
    if isinstance(value, Mapping):
        pairs = [
            [_encode(key, place, tensors, known), _encode(entry, f"{place}.{key}", tensors, known)]
            for key, entry in value.items()
        ]
        return {"mapping": pairs}
    raise ConfigurationError(
        f"--output: a state to resume from cannot hold {place}, which is {type(value).__name__}.",
        expected="dense tensors and plain values in the model's state dict",
        advice="return those from get_extra_state, or leave out --output.",
    )


def _decode(value: Any, tensors: list[Tensor] | None) -> Any:
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return None if tensors is None else tensors[content]
    if kind == "tuple":
        return tuple(_decode(entry, tensors) for entry in content)
    return {_decode(key, tensors): _decode(entry, tensors) for key, entry in content}


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's numbers in their order, without a copy where it is contiguous and on the CPU."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(-1).view(torch.uint8).numpy().data


def digest_of(*values: Any) -> str:
    """Return the SHA-256 of tensors, mappings, tuples and plain values, in their order."""
    digest = hashlib.sha256()
    for value in values:
        update(digest, value)
    return digest.hexdigest()


def update(digest: hashlib._Hash, value: Any) -> None:
    """Add a value to a digest: of a tensor its shape, its dtype and all of its bytes."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        digest.update(bytes_of(value))
    elif isinstance(value, (Mapping, tuple, list)):
        entries = list(value.items()) if isinstance(value, Mapping) else list(value)
        digest.update(f"{type(entries[0]).__name__ if entries else ''} {len(entries)}".encode())
        for entry in entries:
            update(digest, entry)
    else:
        digest.update(repr(value).encode())
