"""hf://: the commit, the token, the cache and offline mode of huggingface_hub."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest

from ssmdiag import diagnose, read_checkpoint
from ssmdiag.checkpoint.location import locate
from ssmdiag.compare.models import compare_models
from ssmdiag.errors import RemoteError, SsmdiagError
from tests.checkpoint.sources.remote_models import write_folder
from tests.checkpoint.sources.stand_in import COMMIT, OTHER_COMMIT, StandIn


def cached(tmp_path: Path, repo: str) -> Path:
    """Write what a download leaves in the cache, but for its links; return the folder of the commit."""
    folder = tmp_path / "cache" / f"models--org--{repo}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return write_folder(folder / "snapshots" / COMMIT)


@pytest.mark.parametrize("shards", [False, True])
def test_a_repository_is_read_at_the_commit_that_its_branch_had(shards: bool, hub: StandIn) -> None:
    write_folder(hub.root / "org" / "one", shards=shards)
    diagnosis = diagnose("hf://org/one")
    assert len(diagnosis.layers) == 3
    assert diagnosis.source is not None
    assert (diagnosis.source.url, diagnosis.source.revision) == ("hf://org/one", COMMIT)
    assert diagnosis.source.requests == len(hub.asked)
    assert all(f"/resolve/{COMMIT}/" in one.path for one in hub.asked[1:])
    assert diagnosis.context_length == 512


@pytest.mark.parametrize(
    ("address", "revision", "step"),
    [
        ("hf://org/one/model.safetensors", COMMIT, None),
        ("hf://org/one@step1000", OTHER_COMMIT, 1000),
        (f"hf://org/one@{OTHER_COMMIT}/model.safetensors", OTHER_COMMIT, None),
    ],
)
def test_an_address_names_a_revision_and_a_file(address: str, revision: str, step: int | None, hub: StandIn) -> None:
    write_folder(hub.root / "org" / "one")
    diagnosis = diagnose(address)
    assert diagnosis.source is not None
    assert (diagnosis.source.revision, diagnosis.path, diagnosis.train_step) == (revision, address, step)


def test_the_token_stays_with_the_hub_and_the_redirect_is_resolved_once(hub: StandIn) -> None:
    write_folder(hub.root / "org" / "moved", width=900)
    told = repr(diagnose("hf://org/moved/model.safetensors"))
    assert len([one for one in hub.requests("model.safetensors") if one.path.startswith("/org/")]) == 1
    assert len([one for one in hub.requests("model.safetensors") if one.path.startswith("/cdn/")]) > 1
    for one in hub.asked:
        assert one.authorization == ("Bearer hf_secret" if one.port == hub.port else None)
    assert "hf_secret" not in told
    assert "s3cret" not in told


REFUSED = {
    "hf://org/gated": ("is gated", "hf auth login"),
    "hf://org/absent": ("is not on the hub, or is private (status 404 with your token)", "check the name"),
    "hf://org/one@no-such": ("hf://org/one has no revision no-such", "a branch, a tag or a commit"),
    "hf://org/one/model.safetensor": ("does not exist", "did you mean model.safetensors"),
    "hf://datasets/org/one": ("names no model of the hub", "hf://org/model"),
    "hf://": ("names no model of the hub", "hf://org/model"),
    "hf://org": ("names no model of the hub (status 404)", "hf://org/model"),
}


@pytest.mark.parametrize("address", REFUSED)
def test_what_the_hub_refuses_is_one_sentence_with_what_to_do(address: str, hub: StandIn) -> None:
    write_folder(hub.root / "org" / "one")
    with pytest.raises(SsmdiagError) as error:
        read_checkpoint(address)
    for part in REFUSED[address]:
        assert part in str(error.value)
    assert "hf_secret" not in str(error.value)


def test_a_cached_file_is_not_moved_again(hub: StandIn, tmp_path: Path) -> None:
    write_folder(hub.root / "org" / "one")
    cached(tmp_path, "one")
    diagnosis = diagnose("hf://org/one")
    assert diagnosis.source is not None
    assert [one.path for one in hub.asked] == ["/api/models/org/one"]
    assert diagnosis.path == "hf://org/one"


def test_offline_the_cache_alone_is_read(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match=r"not in the hub's cache, and offline mode \(HF_HUB_OFFLINE\) is on"):
        read_checkpoint("hf://org/one")
    cached(tmp_path, "one")
    diagnosis = diagnose("hf://org/one")
    assert diagnosis.source is not None
    assert (diagnosis.source.revision, diagnosis.source.requests, hub.asked) == (COMMIT, 0, [])


def test_without_huggingface_hub_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RemoteError, match=r"pip install 'ssmdiag\[hub\]'"):
        read_checkpoint("hf://org/one")


def test_two_models_of_the_hub_are_compared(hub: StandIn) -> None:
    write_folder(hub.root / "org" / "one")
    write_folder(hub.root / "org" / "moved", seed=2)
    pair = compare_models("hf://org/one", "hf://org/moved")
    assert [side.path for side in (pair.a, pair.b)] == ["hf://org/one", "hf://org/moved"]
    assert pair.exit_code() == 0


def test_an_address_goes_to_another_process(hub: StandIn) -> None:
    write_folder(hub.root / "org" / "one")
    for address in ("hf://org/one", f"{hub.url}/files/org/one/model.safetensors", "memory://a/b"):
        path = locate(address)
        if not address.startswith("memory"):
            read_checkpoint(path)
        assert str(pickle.loads(pickle.dumps(path))) == address
    assert len(read_checkpoint(pickle.loads(pickle.dumps(locate("hf://org/one"))))) == 27


def test_a_hub_that_answers_otherwise_is_said(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = "tests.checkpoint.sources.stand_in._Handler._model"
    for body in (b"<html>", b"[]", b'{"sha": 1, "siblings": []}', b"[" * 100_000):
        monkeypatch.setattr(handler, lambda self, *arguments, body=body: self._short(200, body=body))
        with pytest.raises(RemoteError, match="does not answer as the hub does"):
            read_checkpoint("hf://org/one")
