"""tar archives: what Python's own tarfile wrote is read where it lies; what is made to mislead is refused."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from ssmdiag import SsmdiagError, read_checkpoint
from ssmdiag.checkpoint.formats import tar_archive
from ssmdiag.checkpoint.opening import open_source
from ssmdiag.errors import CheckpointError, PartialModelError
from tests.checkpoint.formats.samples import SAMPLES, STATE
from tests.checkpoint.sources.memory import InMemory

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
every_format = pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
every_sample = pytest.mark.parametrize("sample", SAMPLES)


def tar(members: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000.25  # a time that needs a pax header
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def weights(sample: str, folder: Path) -> bytes:
    return SAMPLES[sample][2](STATE, folder)


def refused(content: bytes, name: str = "m.nemo") -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_source(InMemory(content, name))
    return caught.value


@every_format
@every_sample
def test_the_checkpoint_in_an_archive_is_read_whatever_its_format(sample: str, format: int, tmp_path: Path) -> None:
    name = f"./{SAMPLES[sample][1]}"
    source = InMemory(tar({"./model_config.yaml": b"d: 3\n", name: weights(sample, tmp_path)}, format), "m.nemo")
    container = open_source(source)
    assert container.format.startswith("tar, ")
    assert (container.name, container.path) == ("m.nemo", None)
    for name, value in STATE.items():
        assert torch.equal(container.load(name), value)
    assert set(container.names()) == STATE.keys()


@every_format
def test_names_of_any_length_and_folders_are_read(format: int, tmp_path: Path) -> None:
    folder = "/".join(["a" * 60] * (3 if format == tarfile.USTAR_FORMAT else 9))
    content = tar({f"{folder}/model_weights.ckpt": weights("torch zip", tmp_path)}, format)
    assert set(open_source(InMemory(content, "m")).names()) == STATE.keys()


def test_a_nemo_file_opens_alone_and_in_its_folder_with_the_settings_in_it(tmp_path: Path) -> None:
    members = {"config.json": json.dumps({"n_ctx": 77}).encode(), "model.safetensors": weights("safetensors", tmp_path)}
    (tmp_path / "m").mkdir()
    path = tmp_path / "m" / "model.nemo"
    path.write_bytes(tar(members))
    for place in (path, tmp_path / "m"):
        checkpoint = read_checkpoint(place)
        assert set(checkpoint) == set(STATE)
        assert checkpoint.settings["n_ctx"] == 77
        assert checkpoint.format == "tar, safetensors"


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    state = {f"w{number}": torch.full((50_000,), float(number)) for number in range(4)}
    source = InMemory(tar({"model_weights.ckpt": SAMPLES["safetensors"][2](state, tmp_path)}), "m.nemo")
    container = open_source(source)
    assert sum(length for _, length in source.pieces) < 4096
    source.pieces.clear()
    assert torch.equal(container.load("w2"), state["w2"])
    assert [length for _, length in source.pieces] == [200_000]


def test_what_cannot_be_read_in_place_is_named_with_the_command_that_unpacks_it(tmp_path: Path) -> None:
    folder = refused(tar({"weights/.metadata": b"x", "weights/__0_0.distcp": b"x", "model.yaml": b"x"}))
    assert "a torch.distributed checkpoint in it (weights, 2 files)" in folder.seen
    assert folder.advice == "mkdir OUT && tar -xf m.nemo -C OUT && ssmdiag inspect OUT/weights"
    several = refused(tar({"a.pt": b"x", "b.pt": b"x"}))
    assert "2 files of weights: a.pt, b.pt" in several.seen
    shards = refused(tar({"model-00001-of-00002.safetensors": b"x", "model-00002-of-00002.safetensors": b"x"}))
    assert "tar -xf m.nemo" in str(shards.advice)
    ranks = refused(tar({f"./mp_rank_0{rank}/model_weights.ckpt": b"x" for rank in (0, 1)}))
    assert isinstance(ranks, PartialModelError)
    assert "the parts of 2 ranks" in ranks.seen
    assert "it holds README.md" in refused(tar({"README.md": b"x"})).seen
    inner = tar({"model.pt": weights("torch zip", tmp_path)})
    assert "a tar archive in another" in refused(tar({"m.nemo": inner})).seen


def test_compressed_archives_say_how_to_unpack_them(tmp_path: Path) -> None:
    for mode, command in (("w:gz", "gzip -dc"), ("w:bz2", "bzip2 -dk"), ("w:xz", "xz -dk")):
        path = tmp_path / f"m-{mode[2:]}.nemo"
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.addfile(tarfile.TarInfo("model_weights.ckpt"))
        with pytest.raises(CheckpointError, match="which ssmdiag does not read") as caught:
            read_checkpoint(path)
        assert command in str(caught.value.advice)


# --- what is made to mislead -----------------------------------------------------------------------------------------


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    head = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"0" * 12 + b" " * 8 + kind
    return head.ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (header(b"m.pt", b"77777777777"), "ends after"),
        (header(b"m.pt", b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7), "ends after"),
        (header(b"m.pt", b"\xff" * 12), "larger than any file"),
        (header(b"m.pt", b"99"), "without a size"),
        (header(b"m.pt", b"10", b"S"), "--sparse"),
        (header(b"x", b"77777777", b"x") + bytes(1024), "a header of"),
        (header(b"x", b"20", b"x") + b"99 path=x\n".ljust(512, b"\0"), "contradicts itself"),
        (header(b"x", b"20", b"x") + b"00 path=x\n".ljust(512, b"\0"), "contradicts itself"),
        (header(b"x", b"25", b"x") + b"21 GNU.sparse.major=1".ljust(512, b"\0") + header(b"m.pt", b"0"), "--sparse"),
        (header(b"a", b"0") + b"x" * 512, "no header at byte 512"),
        (header(b"a", b"0") * 30_000, "more than 20,000 members"),
        (header(b"x", b"77777777", b"L") + bytes(1024), "a header of"),
    ],
)  # fmt: skip
def test_an_archive_that_contradicts_itself_is_refused_for_what_it_is(content: bytes, said: str) -> None:
    error = refused(content)
    assert said in error.seen
    assert error.seen.startswith("m.nemo is a tar archive that is not read")


def test_links_folders_and_devices_are_no_weights(tmp_path: Path) -> None:
    links = b"".join(header(b"m%s.pt" % kind, b"0", kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6"))
    assert "without weights" in refused(links + bytes(1024)).seen
    outside = tar({"../../../etc/model.pt": weights("torch zip", tmp_path)})
    assert set(open_source(InMemory(outside, "m")).names()) == STATE.keys()  # only read: the name leads nowhere


@pytest.mark.one_in(2)
def test_a_cut_or_damaged_archive_is_read_or_refused_by_name(tmp_path: Path) -> None:
    content = tar({"model_config.yaml": b"d: 3\n", "model_weights.ckpt": weights("safetensors", tmp_path)})
    path = tmp_path / "damaged.nemo"
    dice = random.Random(0)
    damaged = [content[:length] for length in range(0, len(content), 97)]
    for _ in range(200):
        changed = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            changed[dice.randrange(min(len(changed), dice.choice((600, 10**9))))] = dice.randrange(256)
        damaged.append(bytes(changed))
    for each in damaged:
        path.write_bytes(each)
        try:
            for stored in read_checkpoint(path).values():
                assert stored.load().shape == stored.shape
        except SsmdiagError as error:
            assert path.name in str(error)  # noqa: PT017


def test_the_number_of_members_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archive, "MOST_MEMBERS", 3)
    assert "more than 3 members" in refused(tar({f"{number}.txt": b"" for number in range(4)})).seen
