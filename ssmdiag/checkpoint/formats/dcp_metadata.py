"""`.metadata` of a torch.distributed checkpoint: which tensors there are, and where each chunk of them is.

It is one pickle of torch.distributed.checkpoint.metadata.Metadata: tensors by name, each with its chunks (offsets and
sizes), and for each (name, offsets) the file and the bytes of it that hold the chunk. Read as plain data (see
`inert_pickle`). torch renames it into place last.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, TypeGuard

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.inert_pickle import InertUnpickler, StandIn, UnsafeName, without_collection
from ssmdiag.checkpoint.formats.interface import Source
from ssmdiag.checkpoint.formats.torch_archive import BROKEN, MOST_AXES
from ssmdiag.errors import CheckpointError, UnsafePickleError

MOST_METADATA = 256 << 20
"""Most bytes of a .metadata; one of 192,000 chunks has 27 million."""
LONG_METADATA = 4 << 20
"""Bytes of a .metadata that take more than a second to read, which is announced."""
LONGEST_FILE = 255
Offsets = tuple[int, ...]


class Place(NamedTuple):
    """Where some bytes are."""

    file: str
    start: int
    length: int


class Chunk(NamedTuple):
    """A block of a tensor, and where its values are."""

    offsets: Offsets
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A tensor in chunks, which together have as many values as it."""

    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[Chunk, ...]


class InvalidMetadataError(Exception):
    """The metadata contradicts itself, or describes what is not read."""

    def __init__(self, what: str, advice: str = "copy or save the folder again.") -> None:
        super().__init__(what)
        self.advice = advice


@dataclass(frozen=True)
class Metadata:
    """What a `.metadata` says."""

    tensors: Mapping[str, SplitTensor]
    items: Mapping[str, Place]
    """Everything else that was saved, one pickle each: steps, settings of optimisers."""
    paths: Mapping[str, tuple[Any, ...]]
    """The keys that lead to each name, where nested mappings were saved."""
    ends: Mapping[str, int]
    """The files, and where the last byte of each stands that it speaks of."""


def read_metadata(source: Source) -> Metadata:
    """Return what a `.metadata` says. Raises CheckpointError; UnsafePickleError where it calls for code."""
    if source.size > MOST_METADATA:
        raise CheckpointError(
            f"{source.name} has {source.size:,} bytes.", expected=f"at most {MOST_METADATA:,}", advice="save it again."
        )
    if source.size > LONG_METADATA:
        import logging

        text = "reading the table of chunks of %s%s, %s bytes …"
        logging.getLogger("ssmdiag.progress").info(text, _folder(source), source.name, f"{source.size:,}")
    try:
        source.prefetch([(0, source.size)])
        content = io.BytesIO(source.read(0, source.size))
        with without_collection():
            # More instructions than usual are allowed: 140 bytes, those of a chunk, hold 36 and what is counted as 30.
            return _metadata(InertUnpickler(content, {}, lambda pid: None, source.size * 3 // 2).load())
    except UnsafeName as error:
        raise UnsafePickleError(
            f"{source.name} is refused: its pickle calls for {error.name}. Nothing of it was run.",
            expected="the metadata of a torch.distributed checkpoint",
            advice="ask whoever made the folder for a .safetensors; do not load this one.",
        ) from error
    except (*BROKEN, InvalidMetadataError) as error:
        why = str(error) if isinstance(error, InvalidMetadataError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"{_folder(source)}{source.name} is torn, or not what a torch.distributed checkpoint has "
            f"({shortened(why, 300)}).",
            advice=error.advice if isinstance(error, InvalidMetadataError) else "copy or save the folder again.",
        ) from error


def _folder(source: Source) -> str:
    return f"{source.path.parent.name}/" if source.path else ""


def _metadata(content: Any) -> Metadata:
    attributes = _attributes(content, "Metadata")
    described, places = attributes.get("state_dict_metadata"), attributes.get("storage_data")
    if not isinstance(described, Mapping) or not isinstance(places, Mapping):
        raise InvalidMetadataError("it has no table of tensors or of their places")
    where = dict(_places(places))
    if len(where) < len(places):
        raise InvalidMetadataError("it gives two places for one chunk")
    tensors: dict[str, SplitTensor] = {}
    items: dict[str, Place] = {}
    for name, entry in described.items():
        if not isinstance(name, str):
            raise InvalidMetadataError("a name is not text")
        if isinstance(entry, StandIn) and entry.origin.endswith(".BytesStorageMetadata"):
            if (name, ()) in where:
                items[name] = where[name, ()]
        else:
            tensors[name] = _tensor(name, _attributes(entry, "TensorStorageMetadata"), where)
    ends = _ends([chunk.place for tensor in tensors.values() for chunk in tensor.chunks])
    for place in items.values():
        ends[place.file] = max(ends.get(place.file, 0), place.start + place.length)
    paths = attributes.get("planner_data")
    known = paths.items() if isinstance(paths, Mapping) else ()
    return Metadata(tensors, items, {name: path for name, path in known if isinstance(path, tuple)}, ends)


def _attributes(entry: Any, kind: str) -> Mapping[Any, Any]:
    if not isinstance(entry, StandIn) or not entry.origin.endswith(f".{kind}") or not isinstance(entry.state, Mapping):
        raise InvalidMetadataError(f"no {kind} where one should be")
    return entry.state


def _places(places: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, Offsets], Place]]:
    """Yield (name, offsets) and the place of each chunk."""
    files: dict[str, str] = {}
    for index, info in places.items():
        if not isinstance(index, StandIn) or not isinstance(info, StandIn):
            raise InvalidMetadataError("no place where one should be")
        key, place = index.state, info.state
        name, offsets = key["fqn"], key.get("offset") or ()
        file, start, length = place["relative_path"], place["offset"], place["length"]
        if place.get("transform_descriptors"):
            raise InvalidMetadataError(
                "an extension of the writer compressed or encrypted its files",
                "save it again without _extensions, or load it with torch and the same extensions.",
            )
        if type(name) is not str or not _are_sizes((start, length)) or not _are_sizes(offsets):
            raise InvalidMetadataError("a place that is no name and numbers")
        if file not in files:
            files[file] = _file_name(file)
        yield (name, offsets), Place(files[file], start, length)


def _file_name(file: Any) -> str:
    if not isinstance(file, str) or not 0 < len(file) <= LONGEST_FILE:
        raise InvalidMetadataError("the name of a file is not text, or too long")
    if os.path.basename(file) != file or "\\" in file or "\0" in file or file in (".", ".."):
        raise InvalidMetadataError(f"it points outside its folder: {shortened(file)}")
    return file


def _tensor(name: str, entry: Mapping[Any, Any], where: Mapping[tuple[str, Offsets], Place]) -> SplitTensor:
    """Return a tensor; its chunks lie inside it and have as many values as it, places included."""
    shape, listed = entry.get("size"), entry.get("chunks")
    if not _are_sizes(shape) or not isinstance(listed, list) or prod(size for size in shape if size) >= 2**60:
        raise InvalidMetadataError(f"tensor {shortened(name)} has no shape or no chunks")
    state = getattr(entry.get("properties"), "state", None)
    dtype = getattr(state[0], "origin", "").removeprefix("torch.") if isinstance(state, tuple) and state else ""
    width = DTYPE_BITS.get(dtype, 8) // 8
    chunks: list[Chunk] = []
    values = 0
    for each in listed:
        attributes = _attributes(each, "ChunkStorageMetadata")
        offsets, sizes = attributes.get("offsets"), attributes.get("sizes")
        if not _are_sizes(offsets) or not _are_sizes(sizes) or not len(offsets) == len(sizes) == len(shape):
            raise InvalidMetadataError(f"a chunk of {shortened(name)} has no offsets or sizes")
        if any(start + size > end for start, size, end in zip(offsets, sizes, shape, strict=True)):
            raise InvalidMetadataError(f"a chunk of {shortened(name)} reaches outside it")
        if not (count := prod(sizes)):
            continue  # the share of a rank beyond the last row
        place = where.get((name, offsets))
        if place is None:
            raise InvalidMetadataError(f"the chunk of {shortened(name)} at {list(offsets)} is nowhere")
        if place.length <= count * width:  # torch.save adds names and a table of contents
            raise InvalidMetadataError(
                f"{place.length:,} bytes for the {count:,} values of {dtype} of {shortened(name)} at {list(offsets)}, "
                "as serialization_format=SAFETENSORS leaves them, which torch's own load does not read either",
                "save it again with the usual serialization_format, or with HuggingFaceStorageWriter.",
            )
        values += count
        chunks.append(Chunk(offsets, sizes, place))
    if values != prod(shape):
        raise InvalidMetadataError(
            f"tensor {shortened(name)} {list(shape)} has {prod(shape):,} values, and its chunks {values:,}"
        )
    return SplitTensor(shape, dtype, tuple(chunks))


def _are_sizes(numbers: Any) -> TypeGuard[tuple[int, ...]]:
    if type(numbers) is not tuple or len(numbers) > MOST_AXES:
        return False
    for number in numbers:  # noqa: SIM110 – a third of the time, of hundreds of thousands
        if type(number) is not int or not 0 <= number < 2**60:
            return False
    return True


def _ends(places: list[Place]) -> dict[str, int]:
    """Return where the last chunk in each file ends. Refuses chunks that share bytes, which could fill any memory."""
    ends: dict[str, int] = {}
    for place in sorted(places, key=lambda place: place.start):
        if place.start < ends.get(place.file, 0):
            raise InvalidMetadataError(f"two chunks share bytes of {shortened(place.file)}")
        ends[place.file] = place.start + place.length
    return ends
