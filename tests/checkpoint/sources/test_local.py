"""A local file is read by offset, or refused: never waited for, never mapped."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from typing import IO

import pytest

from ssmdiag import read_checkpoint
from ssmdiag.checkpoint.formats.zip_file import open_zip
from ssmdiag.checkpoint.sources import LocalFile
from ssmdiag.errors import CheckpointError
from tests.checkpoint.sources.memory import InMemory


def test_bytes_are_read_from_anywhere_and_belong_to_the_reader(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    source = LocalFile(tmp_path / "f")
    assert (source.name, source.size) == ("f", 10)
    piece = source.read(3, 4)
    assert piece == b"3456"
    piece[0] = 0
    assert source.read(3, 4) == b"3456"
    with source.open() as file:
        file.seek(8)
        assert file.read() == b"89"


@pytest.mark.parametrize(("start", "length"), [(0, 11), (10, 1), (-1, 2), (5, -3), (2**62, 2**62)])
def test_what_is_not_there_is_no_reason_to_make_room(start: int, length: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    with pytest.raises(EOFError):
        LocalFile(tmp_path / "f").read(start, length)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    with pytest.raises(OSError, match="it is a pipe or a device, not a file"):
        LocalFile(tmp_path / "p")


def test_a_file_that_changed_is_not_read_further(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    source = LocalFile(tmp_path / "f")
    (tmp_path / "new").write_bytes(b"abcdefghij")
    (tmp_path / "new").replace(tmp_path / "f")
    for read in (lambda: source.read(0, 1), source.open):
        with pytest.raises(EOFError, match="changed while it was read"):
            read()


def test_a_file_that_changes_while_it_is_opened_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is being written does."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\0" * 100)
    read = LocalFile.read

    def grow(source: LocalFile, start: int, length: int) -> bytearray:
        with path.open("ab") as file:
            file.write(b"\0")
        return read(source, start, length)

    monkeypatch.setattr(LocalFile, "read", grow)
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read \(the file was changed"):
        read_checkpoint(path)


def test_an_archive_whose_source_is_gone_leaves_nothing_behind() -> None:
    """An error in what tidies it up would be a warning, and fail here."""

    class Gone(InMemory):
        def open(self) -> IO[bytes]:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        open_zip(Gone(b"", "m.npz"))
    gc.collect()
