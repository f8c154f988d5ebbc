"""A local file is read by offset, or refused: never waited for, never mapped."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path
from typing import IO

import pytest
import torch
from safetensors.torch import save

from ssmdiag import read_checkpoint
from ssmdiag.checkpoint.copies import first_difference
from ssmdiag.checkpoint.formats.zip_file import open_zip
from ssmdiag.checkpoint.opening import open_source
from ssmdiag.checkpoint.ranks import require_no_rank
from ssmdiag.checkpoint.shards import require_no_shard
from ssmdiag.checkpoint.sources import LocalFile
from ssmdiag.errors import CheckpointError, PartialModelError
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


def test_the_rank_of_a_file_from_elsewhere_is_read_from_it_and_from_its_name_alone() -> None:
    whole = save({"layers.0.A_log": torch.zeros(4, 2)})
    require_no_rank(open_source(InMemory(whole, "model-rank-0.safetensors")))
    require_no_shard(open_source(InMemory(whole, "model.safetensors")))
    with pytest.raises(PartialModelError, match=r"model\.world_size_4\.safetensors is the part of one of 4 ranks"):
        require_no_rank(open_source(InMemory(whole, "model.world_size_4.safetensors")))
    with pytest.raises(PartialModelError, match=r"is shard 1 of the 2 shards of a model"):
        require_no_shard(open_source(InMemory(whole, "model-00001-of-00002.safetensors")))


def test_files_from_elsewhere_are_compared_by_their_values() -> None:
    one, other = (save({"w": torch.tensor([1.0, value])}) for value in (2.0, 3.0))
    first, copy, differing = (open_source(InMemory(content, "m.safetensors")) for content in (one, one, other))
    assert first_difference(first, copy, ["w"]) is None
    assert first_difference(first, differing, ["w"]) == "w"


def test_an_archive_whose_source_is_gone_leaves_nothing_behind() -> None:
    """An error in what tidies it up would be a warning, and fail here."""

    class Gone(InMemory):
        def open(self) -> IO[bytes]:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        open_zip(Gone(b"", "m.npz"))
    gc.collect()
