"""torch.export archives (.pt2): the weights beside the graph, which is not looked at.

Seen in torch 2.13 (torch/export/pt2_archive/_package.py): a zip with one member of raw bytes for each storage,
`data/weights/weight_0` …, and `data/weights/MODEL_weights_config.json`, which gives each tensor's member, dtype, sizes
and strides. Before, `data/weights/MODEL.pt` or `serialized_state_dict.pt` is what torch.save writes.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Hashable, Mapping
from typing import Any

from ssmdiag.checkpoint.budget import Allowance, parse_json, shortened
from ssmdiag.checkpoint.formats.interface import Container, FirstLook, Format, Source, Tensor
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import TensorTable
from ssmdiag.checkpoint.formats.torch_archive import Storage, TensorRecord, tensor_record
from ssmdiag.checkpoint.formats.zip_file import member_names, open_zip, read_member, start_of
from ssmdiag.checkpoint.names import MOST_NAMES
from ssmdiag.checkpoint.sources.slice import Slice
from ssmdiag.errors import CheckpointError
from ssmdiag.printable import first_of

MOST_TABLE = 64 << 20
"""Most bytes of the table of weights."""
MOST_UNPACKED, MOST_TIMES = 256 << 20, 20
_TABLE = re.compile(r"(?:.*/)?data/weights/(.+)_weights_config\.json")
_SAVED = re.compile(r"(?:.*/)?(?:serialized_state_dict\.pt|data/weights/[^/]+\.pt)")
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
"""Number in the file (ScalarType of torch/_export/serde/schema.py) → torch name."""
_STRIDED = 7


class ExportedWeights(TensorTable):
    """The weights of one exported program."""

    format = "torch.export"
    broken = (
        TornError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError, KeyError,
        AttributeError, NotImplementedError, RuntimeError, OverflowError,
    )  # fmt: skip

    def __init__(self, source: Source, tables: list[str]) -> None:
        super().__init__(source)
        try:
            self._zip = open_zip(source)
            self._unpacking = Allowance(max(MOST_UNPACKED, MOST_TIMES * source.size))
            packed = [name for table in tables for name in self._read(table, prefixed=len(tables) > 1)]
        except self.broken as error:
            raise CheckpointError(
                f"{source.name} is torn or not a torch.export archive ({shortened(str(error), 200)}).",
                expected="what torch.export.save writes",
                advice="export it again.",
            ) from error
        if packed:
            self.notes.append(f"left out, as objects of other packages: {first_of(packed)}")
        if not self.entries:
            raise CheckpointError(
                f"{source.name} is an exported program without weights of its own.",
                advice="inspect the checkpoint it was exported from.",
            )

    def values(self, name: str) -> Tensor:
        return self.entries[name].load(self._content)

    def place(self, name: str) -> Hashable:
        """Return the location of a tensor's values; tied tensors, which are stored once, have the same one."""
        return self.entries[name].place

    def _read(self, table: str, prefixed: bool) -> list[str]:
        """Add the tensors of one table; return the names of those that are pickled objects."""
        folder = table.rpartition("/")[0]
        root = folder.removesuffix("data/weights")
        order = f"{root}byteorder"
        if order in self._zip.NameToInfo and read_member(self._zip, order, 16) != b"little":
            raise TornError("written on a big-endian machine, which is not supported")
        said = parse_json(read_member(self._zip, table, MOST_TABLE).decode())["config"]
        if not isinstance(said, dict) or len(said) > MOST_NAMES:
            raise TornError(f"its table of weights is not one of at most {MOST_NAMES:,}")
        model = table.removeprefix(f"{folder}/").removesuffix("_weights_config.json")
        packed = []
        for name, one in said.items():
            full = f"{model}.{name}" if prefixed else name
            if one["use_pickle"]:
                packed.append(full)
            else:
                self.entries[full] = self._record(f"{folder}/{one['path_name']}", one["tensor_meta"])
        return packed

    def _record(self, member: str, said: Mapping[str, Any]) -> TensorRecord:
        dtype = _DTYPES.get(said["dtype"])
        if dtype is None or said["layout"] != _STRIDED:
            raise TornError("a tensor of an unknown type or layout")
        sizes, strides = ([one["as_int"] for one in said[key]] for key in ("sizes", "strides"))
        size = self._zip.getinfo(member).file_size
        offset = said["storage_offset"]["as_int"]  # in the whole storage, which the member is
        record = tensor_record(Storage("uint8", size, member), offset, sizes, strides, dtype)
        if not isinstance(record, TensorRecord):
            raise TornError("a tensor of an unknown type")
        return record

    def _content(self, storage: Storage, start: int, length: int) -> bytes:
        member = self._zip.getinfo(storage.key)
        if member.compress_type == zipfile.ZIP_STORED:
            return bytes(self.source.read(start_of(self._zip, member) + start, length))
        if not self._unpacking.take(start + length):
            raise TornError("packed so that reading it takes too long")
        with self._zip.open(member) as file:
            file.seek(start)
            return file.read(length)


def _open(source: Source) -> Container:
    from ssmdiag.checkpoint.opening import open_source

    names = member_names(source)
    if tables := [name for name in names if _TABLE.fullmatch(name)]:
        return ExportedWeights(source, tables)
    saved = next((name for name in names if _SAVED.fullmatch(name)), None)
    if saved is None:
        raise CheckpointError(
            f"{source.name} is torn, or a .pt2 archive without weights (compiled code, as AOTInductor packs it).",
            expected="what torch.export.save writes",
            advice="inspect the checkpoint it was exported from.",
        )
    with open_zip(source) as archive:
        member = archive.getinfo(saved)
        if member.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{source.name} is a torch.export archive that was compressed.",
                advice="torch.save(torch.export.load(PATH).state_dict, 'weights.pt') and inspect that.",
            )
        start = start_of(archive, member)
    opened = open_source(Slice(source, start, member.file_size, f"{source.name}/{saved}"))
    opened.name, opened.format = source.name, f"torch.export, {opened.format}"
    return opened


def _recognises(look: FirstLook) -> bool:
    names = look.once(member_names)
    return any(_TABLE.fullmatch(name) or _SAVED.fullmatch(name) for name in names)


FORMAT = Format(name="torch export", recognises=_recognises, open=_open, suffixes=(".pt2",))
