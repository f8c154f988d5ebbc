"""zarr's description of one array, versions 2 and 3, as orbax writes it: shape, dtype, and how it is cut into chunks.

The layout is public (https://zarr-specs.readthedocs.io): `.zarray` of version 2 and `zarr.json` of version 3 are JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from ssmdiag.checkpoint.budget import parse_json, shortened
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry

METADATA = {"zarr": ".zarray", "zarr3": "zarr.json"}
"""Driver of tensorstore → name of the description."""
LONGEST = 1 << 16
"""Most bytes of a description; orbax writes a few hundred."""
MOST_AXES = 32
KNOWN = frozenset({"zstd", "gzip", "zlib", "bytes", "crc32c", "sharding_indexed", "transpose"})
"""Codecs that unpack piece by piece, so that a chunk which is longer than it says takes no memory; blosc does not."""
_NUMPY = re.compile(r"[<>|]([fciub])(\d{1,2})")
_KINDS = {"f": "float", "c": "complex", "i": "int", "u": "uint"}


@dataclass(slots=True)
class ZarrArray(Entry):
    """One array of a store."""

    key: str = ""
    """Its path in the store."""
    chunks: int = 1
    """Number of chunks that it is cut into."""
    largest: int = 1
    """Values of one chunk, those beyond the array's edge included."""


def described(key: str, content: bytes, driver: str) -> ZarrArray:
    """Return the array of a description. Raises TornError."""
    if len(content) > LONGEST:
        raise TornError(f"the description of {shortened(key)} has {len(content):,} bytes")
    try:
        said = parse_json(content.decode())
        shape = said["shape"]
        if driver == "zarr":
            dtype, chunk = _numpy_name(said["dtype"]), said["chunks"]
            packed = [part.get("id") for part in (said["compressor"], *(said["filters"] or ())) if part is not None]
        else:
            packed = list(_codecs(said["codecs"]))
            dtype, chunk = said["data_type"], said["chunk_grid"]["configuration"]["chunk_shape"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TornError(f"the description of {shortened(key)} is not zarr's ({type(error).__name__})") from error
    if strange := [str(name) for name in packed if name not in KNOWN]:
        raise TornError(f"{shortened(key)} is packed by {shortened(strange[0])}, which orbax does not use")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(chunk) or len(shape) != len(chunk):
        raise TornError(f"{shortened(key)} has an impossible shape")
    return ZarrArray(tuple(shape), dtype, key=key, chunks=_pieces(shape, chunk), largest=prod(chunk))


def _codecs(codecs: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the names of an array's codecs, those in shards included."""
    for codec in codecs:
        yield codec["name"]
        inside = codec.get("configuration") or {}
        for key in ("codecs", "index_codecs"):
            if depth < 2:
                yield from _codecs(inside.get(key, ()), depth + 1)


def _pieces(shape: list[int], chunk: list[int]) -> int:
    return prod(-(-size // max(length, 1)) for size, length in zip(shape, chunk, strict=True))


def _are_sizes(numbers: Any) -> bool:
    whole = isinstance(numbers, list) and len(numbers) <= MOST_AXES
    return whole and all(type(n) is int and n >= 0 for n in numbers) and prod(n for n in numbers if n) < 2**63


def _numpy_name(dtype: Any) -> Any:
    """Return the torch name of a type that zarr 2 writes as NumPy does; other names as they are."""
    if not isinstance(dtype, str) or not (found := _NUMPY.fullmatch(dtype)):
        return dtype
    return "bool" if found[1] == "b" else f"{_KINDS[found[1]]}{8 * int(found[2])}"
