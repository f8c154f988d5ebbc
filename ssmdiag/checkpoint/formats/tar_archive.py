"""Uncompressed tar archives (.nemo, .tar): the checkpoint inside is read where it lies, nothing is unpacked.

A tar is a row of members: a header of 512 bytes with name, size and kind, then the content, padded to 512 (POSIX ustar;
pax and GNU headers carry long names and sizes). NeMo 1 packs model_config.yaml and model_weights.ckpt (the folder of
each rank above it where a model is split), NeMo 2's early releases a torch.distributed folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ssmdiag.checkpoint.budget import MOST_CONFIG, Allowance, parse_json, shortened
from ssmdiag.checkpoint.file_names import SHARD, WEIGHTS, may_hold_weights
from ssmdiag.checkpoint.formats.interface import Container, FirstLook, Format, Source
from ssmdiag.checkpoint.formats.sequential import SequentialReader, TornError
from ssmdiag.checkpoint.ranks import is_marked
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.checkpoint.sources.slice import Slice
from ssmdiag.errors import CheckpointError, PartialModelError
from ssmdiag.printable import first_of

BLOCK = 512
MAGIC, MAGIC_AT = b"ustar", 257
MOST_MEMBERS, MOST_RECORDS = 20_000, 400_000
LONGEST_EXTENSION = 1 << 16
"""Most bytes of a pax or GNU header that extends the next member's."""
USUAL = ("model_weights.ckpt", *WEIGHTS)
"""Names of the weights, in the order they are tried."""
_FILES, _SPARSE, _LONG_NAME, _LONG_LINK, _PAX, _PAX_OF_ALL = (b"\0", b"0", b"7"), b"S", b"L", b"K", b"x", b"g"
_PAX_RECORD = re.compile(rb"(\d{1,6}) (path|size|GNU\.sparse\.[^=]{1,40})=")
_DISTRIBUTED = re.compile(r"(?:.*/)?(?:\.metadata|[^/]*\.distcp)")


@dataclass(frozen=True)
class Member:
    """One file in an archive."""

    name: str
    start: int
    size: int


class _Reader(SequentialReader):
    where = "a member"

    def members(self) -> list[Member]:
        """Return the plain files. Raises TornError."""
        found: list[Member] = []
        said: dict[str, Any] = {}
        left = Allowance(MOST_RECORDS)
        for _ in range(MOST_MEMBERS):
            if self.at == self.end or not (header := self.read(BLOCK)).strip(b"\0"):
                return found
            if not header.startswith(MAGIC, MAGIC_AT):
                raise TornError(f"no header at byte {self.at - BLOCK:,}")
            kind = header[156:157]
            size = _number(header[124:136])
            if kind in (_PAX, _LONG_NAME):
                said |= _extension(self._content(size), kind, left)
                continue
            size = said.get("size", size)
            name = said.get("path") or _joined(header)
            if kind in _FILES and "sparse" not in said:
                found.append(Member(name, self.at, size))
            elif kind == _SPARSE or "sparse" in said:
                raise TornError(f"{shortened(name)} is stored with its zeros left out, as GNU's --sparse does")
            self.skip(_padded(size) if kind in (*_FILES, _LONG_LINK, _PAX_OF_ALL) else 0)
            said = {}
        raise TornError(f"it has more than {MOST_MEMBERS:,} members")

    def _content(self, size: int) -> bytes:
        if size > LONGEST_EXTENSION:
            raise TornError(f"a header of {size:,} bytes")
        return self.read(_padded(size))[:size]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _number(field: bytes) -> int:
    """Return a number in octal digits or, above 8 GiB, in binary with the first bit set."""
    if field[0] & 0x80:
        number = int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    else:
        text = field.strip(b" \0")
        if not re.fullmatch(rb"[0-7]*", text):
            raise TornError("a member without a size")
        number = int(text or b"0", 8)
    if number >= 2**63:
        raise TornError("a member larger than any file")
    return number


def _joined(header: bytes) -> str:
    name, prefix = (header[at:end].split(b"\0")[0].decode(errors="replace") for at, end in ((0, 100), (345, 500)))
    return f"{prefix}/{name}" if prefix and header.startswith(b"ustar\x00", MAGIC_AT) else name


def _extension(content: bytes, kind: bytes, left: Allowance) -> dict[str, Any]:
    """Return the path and the size that a pax or GNU header gives, and whether the next member is sparse."""
    if kind == _LONG_NAME:
        return {"path": content.split(b"\0")[0].decode(errors="replace")}
    said: dict[str, Any] = {}
    at = 0
    while at < len(content):
        length, _, _ = content[at : at + 8].partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content) - at:
            raise TornError("a header that contradicts itself")
        if not left.take():
            raise TornError("more records in its headers than members can need")
        record = content[at : at + int(length)]
        at += int(length)
        if not (found := _PAX_RECORD.match(record)):
            continue
        value = record[found.end() :].rstrip(b"\n")
        if found[2] == b"size":
            if not re.fullmatch(rb"[0-9]{1,18}", value):
                raise TornError("a member without a size")
            said["size"] = int(value)
        else:
            said["path" if found[2] == b"path" else "sparse"] = value.decode(errors="replace")
    return said


def open_archive(source: Source) -> Container:
    """Open the one checkpoint in an archive. Raises CheckpointError, EOFError, OSError."""
    from ssmdiag.checkpoint.opening import open_source

    if isinstance(source, Slice):
        raise CheckpointError(
            f"{source.name} is a tar archive in another.", advice="unpack the outer one: tar -xf FILE"
        )
    try:
        with source.open() as file:
            members = _Reader(file, source.size).members()
    except TornError as error:
        raise CheckpointError(
            f"{source.name} is a tar archive that is not read ({error}).",
            advice=f"get it again; or unpack it: tar -xf {source.name}, and inspect what is inside.",
        ) from error
    member = _chosen(source, members)
    opened = open_source(Slice(source, member.start, member.size, f"{source.name}/{member.name}"))
    opened.name = source.name
    opened.format = f"tar, {opened.format}"
    beside = str(PurePosixPath(member.name).with_name("config.json"))
    opened.settings = {**_settings(source, members, beside), **opened.settings}
    return opened


def _chosen(source: Source, members: list[Member]) -> Member:
    """Return the member with the weights. Raises CheckpointError where there is none, or more than one."""
    unpack = f"mkdir OUT && tar -xf {source.name} -C OUT"
    if parts := [member.name for member in members if _DISTRIBUTED.fullmatch(member.name)]:
        folder = PurePosixPath(parts[0]).parent
        raise CheckpointError(
            f"{source.name} is a tar archive with a torch.distributed checkpoint in it ({folder}, {len(parts)} files).",
            advice=f"{unpack} && ssmdiag inspect OUT/{folder}",
        )
    weights = [member for member in members if may_hold_weights(PurePosixPath(member.name).name)]
    ranks = [member.name for member in weights if any(is_marked(part) for part in PurePosixPath(member.name).parts)]
    if len(ranks) > 1:
        raise PartialModelError(
            f"{source.name} is a tar archive with the parts of {len(ranks):,} ranks: {first_of(ranks)}",
            expected="the parts of all ranks merged",
            advice="merge them with NeMo (megatron_change_num_partitions.py with a target of 1), or unpack: " + unpack,
        )
    for name in USUAL:
        if len(found := [member for member in weights if PurePosixPath(member.name).name == name]) == 1:
            return found[0]
    if len(weights) == 1 and not SHARD.search(weights[0].name):
        return weights[0]
    some = first_of([shortened(member.name) for member in weights or members], 6) or "nothing"
    if weights:
        raise CheckpointError(
            f"{source.name} is a tar archive with {len(weights):,} files of weights: {some}",
            expected="one checkpoint",
            advice=f"{unpack} && ssmdiag inspect OUT",
        )
    raise CheckpointError(
        f"{source.name} is a tar archive without weights; it holds {some}.",
        expected="a file of weights in it",
        advice="name the archive or the file with the weights.",
    )


def _settings(source: Source, members: list[Member], name: str) -> Mapping[str, Any]:
    """Return the settings in the config.json beside the weights."""
    for member in members:
        if str(PurePosixPath(member.name)) == name and member.size <= MOST_CONFIG:
            try:
                return flatten(parse_json(source.read(member.start, member.size).decode()))
            except ValueError:
                return {}
    return {}


def _recognises(look: FirstLook) -> bool:
    return look.head.startswith(MAGIC, MAGIC_AT)


FORMAT = Format(name="tar", recognises=_recognises, open=open_archive, suffixes=(".nemo",), envelope=True)
