"""Zip archives, as used by several formats: the table of contents is compared with the file before anything is
unpacked. An archive of no known format is refused.
"""

from __future__ import annotations

import shlex
import struct
import zipfile
import zlib
from typing import IO, cast

from ssmdiag.checkpoint.budget import shortened
from ssmdiag.checkpoint.formats.interface import Container, Format, Source
from ssmdiag.errors import CheckpointError

MOST_UNPACKED, MOST_TIMES = 256 << 20, 20
"""Most bytes that a file may unpack to, or most times its own size; weights compress by half at best."""
PICKLES = ("data.pkl", "constants.pkl")
"""Endings of members that torch.save and torch.jit.save always write."""
_PIECE = 1 << 20
_LOCAL_HEADER = 30
_MORE_WHEN_PACKED = 1024
"""Most bytes by which a packed member may be longer than its unpacked content."""


class ZipError(zipfile.BadZipFile):
    """The table of contents contradicts the file, or announces more bytes than should be unpacked."""


class _Archive(zipfile.ZipFile):
    """An archive that closes the file it reads when it is closed itself, or forgotten."""

    _file: IO[bytes] | None = None

    def __init__(self, source: Source) -> None:
        self._file = source.open()  # made after the archive, so that garbage collection closes the archive first
        try:
            super().__init__(self._file)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.close()


def open_zip(source: Source) -> zipfile.ZipFile:
    """Return an archive whose members can all be read safely. Raises ZipError, BadZipFile."""
    archive = _Archive(source)
    try:
        _require_safe(archive, source.size)
    except ZipError:
        archive.close()
        raise
    return archive


def _require_safe(archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    if len(archive.NameToInfo) < len(members):
        raise ZipError("two of its members have one name")
    for member in members:
        if member.flag_bits & 1:
            raise ZipError(f"its member {member.filename[:80]} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ZipError("it is compressed by a method other than zip's usual one")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise ZipError(f"its member {member.filename[:80]} announces {member.file_size:,} bytes it does not have")
    if sum(member.compress_size for member in members) > size:
        raise ZipError("its members overlap, or end beyond the file")
    if (total := sum(member.file_size for member in members)) > max(MOST_UNPACKED, MOST_TIMES * size):
        raise ZipError(f"{size:,} bytes that unpack to {total:,}")


def member_names(source: Source) -> tuple[str, ...]:
    """Return the names of a zip archive's members; none where a file does not begin as one. Raises CheckpointError."""
    if not _begins_as_zip(bytes(source.read(0, min(4, source.size)))):
        return ()
    names: list[str] = []
    try:
        with open_zip(source) as archive:
            names = archive.namelist()
    except ZipError as error:
        raise CheckpointError(
            f"{source.name} is a zip archive that is not read: {error}.",
            expected="what torch.save and numpy.savez write",
            advice="save it again, without compression; or unpack it and inspect what is inside.",
        ) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error):
        pass
    if not names:
        raise CheckpointError(
            f"{source.name} is torn: a zip archive ({source.size:,} bytes) without its table of contents.",
            advice="the download or the save was cut short; get the file again.",
        )
    return tuple(names)


def _begins_as_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_zip(source: Source) -> bool:
    """Whether the file ends with a zip archive's table of contents."""
    with source.open() as file:
        return zipfile.is_zipfile(file)


def start_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Return where a member's content begins in the file. Raises BadZipFile."""
    file = archive.fp
    if file is None:
        raise ValueError("the archive is closed")
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER)
    if len(local) < _LOCAL_HEADER or not local.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile(f"no member where {member.filename[:80]} should be")
    name, extra = struct.unpack_from("<HH", local, _LOCAL_HEADER - 4)
    return member.header_offset + _LOCAL_HEADER + name + extra


def beginning_of(archive: zipfile.ZipFile, member: zipfile.ZipInfo, length: int) -> bytes:
    """Return at most so many first bytes of a member, in a tenth of the time that opening it takes."""
    start = start_of(archive, member)
    file = cast(IO[bytes], archive.fp)
    file.seek(start)
    stored = file.read(min(member.compress_size, length + _MORE_WHEN_PACKED))
    if member.compress_type == zipfile.ZIP_STORED:
        return stored[:length]
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, length)


def extents_of(archive: zipfile.ZipFile) -> dict[str, tuple[int, int]]:
    """Return where each member is in the file, as start and length, with what stands before it."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
    return {
        member.filename: (member.header_offset, max(0, end - member.header_offset))
        for member, end in zip(members, ends, strict=False)
    }


def read_member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return the content of a member of at most so many bytes. Raises ZipError where it announces more."""
    member = archive.getinfo(name)
    if member.file_size > most:
        raise ZipError(f"its member {name[:80]} announces {member.file_size:,} bytes, and at most {most:,} are read")
    with archive.open(member) as file:
        # In pieces: a single read unpacks everything before it looks at the announced size.
        return b"".join(iter(lambda: file.read(_PIECE), b""))


def _refuse(source: Source) -> Container:
    raise CheckpointError(
        f"{source.name} is a zip archive without tensors (it holds {shortened(', '.join(member_names(source)[:4]))}).",
        expected="an .npz or a file written by torch.save",
        advice=f"unpack it with `python -m zipfile -e {shlex.quote(source.name)} .`, then inspect what is inside.",
    )


FORMAT = Format(name="zip archive", recognises=lambda look: _begins_as_zip(look.head), open=_refuse, envelope=True)
