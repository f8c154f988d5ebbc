"""s3:// and its like by fsspec; its file system in memory stands for them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.errors import RemoteError
from tests.checkpoint.sources.remote_models import write_folder


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[Path]:
    """A folder whose content is in memory://bucket/model too."""
    folder = write_folder(tmp_path / "model", shards=True, width=600)
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/bucket/model/{file.name}", file.read_bytes())
    yield folder
    memory.store.clear()


def test_a_folder_in_a_bucket_is_diagnosed_as_on_the_disk(bucket: Path) -> None:
    here, there = diagnose(bucket), diagnose("memory://bucket/model")
    assert [layer.rate for layer in here.layers] == [layer.rate for layer in there.layers]
    assert here.context_length == there.context_length == 512
    assert there.source is not None
    assert there.path == there.source.url == "memory://bucket/model"
    assert 0 < there.source.bytes < sum(file.stat().st_size for file in bucket.iterdir())


def test_only_ranges_are_asked_for(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    cat_file = type(fsspec.filesystem("memory")).cat_file

    def recorded(self, path, start=None, end=None, **options):  # type: ignore[no-untyped-def]
        asked.append(end - start)
        return cat_file(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", recorded)
    diagnose("memory://bucket/model/model.safetensors.index.json")
    assert asked


def test_a_file_that_became_shorter_is_said(bucket: Path) -> None:
    checkpoint = read_checkpoint("memory://bucket/model")
    for file in bucket.glob("*.safetensors"):
        fsspec.filesystem("memory").pipe_file(f"/bucket/model/{file.name}", file.read_bytes()[:200_000])
    with pytest.raises(RemoteError, match="bytes came of"):
        checkpoint["backbone.layers.2.norm.weight"].load()


def test_what_is_not_there_and_what_no_package_reads_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="memory://bucket/none does not exist"):
        read_checkpoint("memory://bucket/none")
    with pytest.raises(RemoteError, match="no kind of address that fsspec knows"):
        read_checkpoint("nowhere://bucket/model.pt")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RemoteError, match=r"reading from s3:// needs s3fs\.\n  next: pip install s3fs"):
        read_checkpoint("s3://key:secret@bucket/model.pt")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(RemoteError, match=r"pip install 'ssmdiag\[remote\]'"):
        read_checkpoint("gs://bucket/model.pt")


def test_errors_of_a_driver_are_one_sentence_without_secrets(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self, path, **options):  # type: ignore[no-untyped-def]
        raise RuntimeError("AccessDenied https://me:secret@host/x?signature=secret\nsecret")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "info", refused)
    with pytest.raises(RemoteError, match="RuntimeError: AccessDenied") as error:
        read_checkpoint("memory://bucket/model")
    assert "secret" not in str(error.value)
