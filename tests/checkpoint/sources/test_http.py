"""Files over HTTP: every format reads as it does from the disk, and no answer is believed that is not sound."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.location import locate
from ssmdiag.checkpoint.sources import http, ranged
from ssmdiag.errors import RemoteError, SsmdiagError
from ssmdiag.reports.json import document
from tests.checkpoint.formats.samples import SAMPLES, STATE
from tests.checkpoint.sources.remote_models import write_folder
from tests.checkpoint.sources.stand_in import StandIn


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small files as far apart in requests as large ones."""
    monkeypatch.setattr(http, "HEAD", 300)
    for name, size in {"TAIL": 200, "GAP": 40, "AHEAD": 64, "LARGEST": 150}.items():
        monkeypatch.setattr(ranged, name, size)


def address(world: StandIn, path: Path) -> str:
    return f"{world.url}/files/{path.relative_to(world.root).as_posix()}"


def same_report(here: Path, there: str) -> bool:
    of_one_place = ("checkpoint", "source", "seconds")
    documents = [document(diagnose(path)) for path in (here, there)]
    one, other = ({k: v for k, v in each.items() if k not in of_one_place} for each in documents)
    return one == other


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.usefixtures("small_pieces")
def test_every_format_reads_the_same_tensors_as_from_the_disk(name: str, ahead: bool, world: StandIn) -> None:
    _, file, write = SAMPLES[name]
    path = world.root / file
    path.write_bytes(write(STATE, world.root))
    here, there = read_checkpoint(path), read_checkpoint(address(world, path))
    if ahead:
        there.prefetch(there)
    assert list(here) == list(there)
    for tensor in here:
        assert (here[tensor].shape, here[tensor].dtype) == (there[tensor].shape, there[tensor].dtype)
        assert torch.equal(here[tensor].load(), there[tensor].load()), tensor
    assert here.size == there.size
    assert not any(one.range is None for one in world.asked)


@pytest.mark.parametrize("shards", [False, True])
def test_a_folder_is_diagnosed_as_on_the_disk_and_its_cost_is_told(shards: bool, world: StandIn) -> None:
    folder = write_folder(world.root / "model", shards=shards, width=600)
    there = address(world, folder) + "/"
    assert same_report(folder, there)
    source = diagnose(there).source
    assert source is not None
    assert source.url == there.rstrip("/")
    assert 200_000 < source.bytes < sum(file.stat().st_size for file in folder.iterdir())  # not in_proj of each layer
    assert diagnose(folder).source is None


@pytest.mark.usefixtures("small_pieces")
def test_layers_come_side_by_side_and_not_one_after_the_other(world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(world.root / "model") / "model.safetensors"
    checkpoint = read_checkpoint(address(world, path))
    fetch, first, second = http.HttpFile.fetch, threading.Event(), threading.Event()

    def held(self: http.HttpFile, start: int, end: int) -> bytes:
        if first.is_set():
            second.set()
        first.set()
        assert second.wait(timeout=10), "no other request is under way"
        return fetch(self, start, end)

    monkeypatch.setattr(http.HttpFile, "fetch", held)
    file = checkpoint["backbone.layers.0.mixer.A_log"].container.source  # type: ignore[attr-defined]
    file._fetch = http.HttpFile.fetch.__get__(file._fetch.__self__)
    names = [name for name in checkpoint if name.endswith("A_log")]
    checkpoint.prefetch(names)
    for name in names:
        assert torch.equal(checkpoint[name].load(), read_checkpoint(path)[name].load())


@pytest.mark.parametrize("fault", ["torn", "503", "429", "500", "shorter than said", ""])
def test_an_answer_that_is_lost_is_asked_for_again(fault: str, world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(world.root / "model") / "model.safetensors"
    world.faults.extend([fault, fault])
    assert same_report(path, address(world, path))
    assert len(world.requests("model.safetensors")) == (3 if fault else 1)


UNSOUND = {
    "no ranges": "does not send parts of a file; it would send all",
    "other range": "the server sent other bytes than were asked for (bytes 1-",
    "no content range": "the server sent other bytes than were asked for (no Content-Range",
    "longer than said": "the server sent other bytes than were asked for",
    "torn": "cannot be read: the connection was closed before all of it had come",
    "503": "cannot be read: status 503",
    "wait an hour": "cannot be read: status 429",
    "404": "does not exist (status 404)",
    "401": "the server refuses access (status 401)",
    "403": "the server refuses access (status 403)",
    "418": "cannot be read: status 418",
    "416": "cannot be read: status 416",
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_an_unsound_answer_is_one_sentence_and_moves_little(fault: str, world: StandIn) -> None:
    path = write_folder(world.root / "model", width=600) / "model.safetensors"
    world.always = fault
    where = locate(address(world, path))
    with pytest.raises(RemoteError) as error:
        read_checkpoint(where)
    assert UNSOUND[fault] in error.value.seen
    assert error.value.seen.count("\n") == 0
    assert where.place.traffic.bytes <= 4 * ranged.HEAD  # type: ignore[union-attr]
    assert len(world.asked) <= 4


CHANGED = {
    "other version": "was changed on the server while it was read (its version is another)",
    "grown": "was changed on the server while it was read",
    "no ranges": "does not send parts of a file",
    "416": "was changed on the server while it was read (it is shorter than it was)",
    "418": "cannot be read any more: status 418",
    "other range": "the server sent other bytes than were asked for",
}


@pytest.mark.parametrize("fault", CHANGED)
def test_a_file_that_changes_after_it_was_opened_is_not_read_on(fault: str, world: StandIn) -> None:
    path = write_folder(world.root / "model", width=600) / "model.safetensors"
    checkpoint = read_checkpoint(address(world, path))
    world.always = fault
    with pytest.raises(RemoteError) as error:
        checkpoint["backbone.layers.2.mixer.A_log"].load()
    assert CHANGED[fault] in error.value.seen


def test_a_server_that_falls_silent_is_given_up(world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(world.root / "model") / "model.safetensors"
    monkeypatch.setattr(http, "TIMEOUT", 0.05)
    monkeypatch.setattr(http, "WAITS", (0.0,))
    world.always = "silent"
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1 did not answer in time"):
        read_checkpoint(address(world, path))


def test_nobody_listening_is_said(world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match=r"127\.0\.0\.1 refuses the connection"):
        read_checkpoint("http://127.0.0.1:9/model.safetensors")


def test_passwords_and_signatures_are_sent_and_never_shown(world: StandIn) -> None:
    path = write_folder(world.root / "model") / "model.safetensors"
    there = address(world, path).replace("http://", "http://me:pass%40word@") + "?signature=s3cret"
    diagnosis = diagnose(there)
    asked = world.requests("model.safetensors")
    assert asked[0].path.endswith("?signature=s3cret")
    assert asked[0].authorization == "Basic bWU6cGFzc0B3b3Jk"
    assert all("?" not in one.path for one in world.requests("config.json"))
    told = repr(document(diagnosis))
    path.unlink()
    with pytest.raises(SsmdiagError) as error:
        read_checkpoint(there)
    for secret in ("s3cret", "pass%40word", "pass@word", "me:"):
        assert secret not in told
        assert secret not in str(error.value)


def test_a_redirect_to_another_kind_of_address_is_not_followed(world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = "tests.checkpoint.sources.stand_in._Handler._file"
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
        monkeypatch.setattr(handler, lambda self, path, target=target: self._short(302, headers={"Location": target}))
        with pytest.raises(RemoteError, match="leads to an address of another kind"):
            read_checkpoint(f"{world.url}/files/model.pt")
    monkeypatch.setattr(handler, lambda self, path: self._short(302, headers={"Location": self.path}))
    with pytest.raises(RemoteError, match="without end"):
        read_checkpoint(f"{world.url}/files/model.pt")


def test_a_public_server_may_not_lead_into_a_private_network(world: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_folder(world.root / "org" / "moved") / "model.safetensors"
    public = iter([True, False])
    monkeypatch.setattr(http, "_is_public", lambda connection, parts: next(public))
    with pytest.raises(RemoteError, match="leads to an address within a private network"):
        read_checkpoint(f"{world.url}/org/moved/resolve/main/{path.name}")


def test_a_page_of_the_hub_is_answered_with_its_address_there(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = http.Answer(404, {}, b"", "", False)
    monkeypatch.setattr(http.Web, "get", lambda *arguments: refused)
    with pytest.raises(RemoteError, match=r"for a model on the hub: hf://state-spaces/mamba-130m@v1/model\.pt"):
        read_checkpoint("https://huggingface.co/state-spaces/mamba-130m/blob/v1/model.pt")


def test_a_name_that_is_on_the_hub_and_not_here_is_told_its_address() -> None:
    with pytest.raises(SsmdiagError, match="hf://state-spaces/mamba-130m"):
        read_checkpoint("state-spaces/mamba-130m")


def test_an_empty_file_and_a_folder_without_a_model_are_said(world: StandIn) -> None:
    (world.root / "model.pt").touch()
    with pytest.raises(SsmdiagError, match="is empty"):
        read_checkpoint(f"{world.url}/files/model.pt")
    (world.root / "model.pt").unlink()
    with pytest.raises(SsmdiagError, match="is a directory without a checkpoint"):
        read_checkpoint(f"{world.url}/files/")


@pytest.mark.parametrize("length", [2_000_000, 13_000_000])
def test_a_stream_is_fetched_in_pieces_that_double(length: int) -> None:
    content = bytes(range(256)) * (length // 256)
    asked: list[int] = []

    def fetch(start: int, end: int) -> bytes:
        asked.append(end - start)
        return content[start:end].ljust(end - start, b"\0")

    file = ranged.RangedFile(locate("https://example.org/m.gguf"), 10 * length, fetch, content[: ranged.HEAD])  # type: ignore[arg-type]
    with file.open() as stream:
        read = b"".join(stream.read(1000) for _ in range(len(content) // 1000))
    assert content.startswith(read)
    assert len(asked) <= 8
    assert sum(asked) <= 2 * length


def test_what_is_kept_stays_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "MOST_KEPT", 1000)
    content = bytes(range(250)) * 40
    file = ranged.RangedFile(locate("https://example.org/m.pt"), len(content), lambda a, b: content[a:b])  # type: ignore[arg-type]
    file.prefetch([(at, 100) for at in range(0, 10_000, 200)])
    for at in (9000, 0, 4321, 50, 9990, 0):
        assert file.read(at, 10) == content[at : at + 10]
        assert sum(span.end - span.start for span in file._spans) <= 1000
    with pytest.raises(EOFError, match="ends before byte"):
        file.read(9995, 10)


def test_a_copy_of_the_whole_is_not_left_on_the_disk(world: StandIn, tmp_path: Path) -> None:
    folder = write_folder(world.root / "model")
    before = sorted(tmp_path.rglob("*"))
    diagnose(address(world, folder / "model.safetensors"))
    assert sorted(tmp_path.rglob("*")) == before
