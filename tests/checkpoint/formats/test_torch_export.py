"""torch.export archives: what torch wrote is read to the bit, lazily; what contradicts itself is refused."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import read_checkpoint
from ssmdiag.checkpoint.opening import open_source
from ssmdiag.errors import CheckpointError
from tests.checkpoint.formats.samples import STATE, Unchanged, exported
from tests.checkpoint.sources.memory import InMemory


class Net(Unchanged):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)
        self.tied = torch.nn.Linear(3, 4)
        self.tied.weight = self.layer.weight
        whole = torch.arange(24.0).reshape(4, 6)
        self.register_buffer("whole", whole)
        self.register_buffer("turned", whole.T)
        self.register_buffer("inside", whole[1:3, 2:5])
        self.register_buffer("short", torch.linspace(-1, 1, 5).bfloat16())
        self.register_buffer("tiny", torch.linspace(-1, 1, 5).to(torch.float8_e4m3fn))
        self.register_buffer("turns", torch.randn(3, dtype=torch.complex64))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("empty", torch.empty(0, 3))


def test_what_torch_exported_is_read_to_the_bit(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Net(), (torch.zeros(2),)), tmp_path / "m.pt2")
    theirs = torch.export.load(tmp_path / "m.pt2").state_dict
    ours = read_checkpoint(tmp_path / "m.pt2")
    assert set(ours) == theirs.keys()
    assert ours.format == "torch.export"
    for name, value in theirs.items():
        found = ours[name].load()
        assert (found.dtype, ours[name].shape) == (value.dtype, tuple(value.shape))
        flat, expected = found.reshape(-1), value.detach().reshape(-1)
        assert flat.view(torch.uint8).equal(expected.view(torch.uint8)), name
    assert set(read_checkpoint(tmp_path)) == theirs.keys()


@pytest.mark.parametrize("name", ["serialized_state_dict.pt", "m/data/weights/model.pt"])
def test_what_earlier_releases_exported_is_read(name: str) -> None:
    saved, file = io.BytesIO(), io.BytesIO()
    torch.save(dict(STATE), saved)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr(name, saved.getvalue())
    container = open_source(InMemory(file.getvalue(), "m.pt2"))
    assert (container.name, container.format) == ("m.pt2", "torch.export, torch zip")
    assert all(container.load(name).equal(value) for name, value in STATE.items())


def test_only_what_is_asked_for_is_read() -> None:
    source = InMemory(exported({f"w{number}": torch.full((50_000,), float(number)) for number in range(4)}), "m.pt2")
    container = open_source(source)
    assert sum(length for _, length in source.pieces) < 4096
    source.pieces.clear()
    assert container.load("w2").equal(torch.full((50_000,), 2.0))
    assert [length for _, length in source.pieces] == [200_000]


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported(STATE))) as whole, zipfile.ZipFile(file, "w") as archive:
        for member in whole.namelist():
            content = whole.read(member)
            if member.endswith(".json"):
                said = json.loads(content)
                change(said["config"])
                content = json.dumps(said).encode()
            archive.writestr(member, content)
    return file.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda meta: meta.update(dtype=99), "unknown type"),
        (lambda meta: meta.update(layout=1), "unknown type or layout"),
        (lambda meta: meta.update(sizes=[{"as_int": 2**40}], strides=[{"as_int": 1}]), "larger than its storage"),
        (lambda meta: meta.update(sizes=[{"as_int": -1}], strides=[{"as_int": 1}]), "impossible shape"),
        (lambda meta: meta.update(storage_offset={"as_int": 99}), "larger than its storage"),
        (lambda meta: meta.update(sizes=[{"as_expr": "s0"}]), "as_int"),
        (lambda meta: meta.update(sizes=3), "is torn"),
    ],
)
def test_a_table_that_contradicts_the_file_is_refused(change: Callable[[dict[str, Any]], Any], said: str) -> None:
    content = changed(lambda config: change(config["layers.0.mixer.A_log"]["tensor_meta"]))
    with pytest.raises(CheckpointError, match=said) as caught:
        open_source(InMemory(content, "m.pt2"))
    assert caught.value.seen.startswith("m.pt2 is torn or not a torch.export archive")


def test_weights_of_other_classes_are_left_out_by_name() -> None:
    content = changed(lambda config: config["layers.0.mixer.D"].update(use_pickle=True))
    container = open_source(InMemory(content, "m.pt2"))
    assert "layers.0.mixer.D" not in container.names()
    assert container.notes == ["left out, as objects of other packages: layers.0.mixer.D"]
    with pytest.raises(CheckpointError, match="without weights of its own"):
        open_source(InMemory(changed(lambda config: config.clear()), "m.pt2"))


def test_a_compressed_archive_unpacks_within_a_limit() -> None:
    file = io.BytesIO()
    packed = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(exported(STATE))) as whole, packed as archive:
        for member in whole.namelist():
            archive.writestr(member, whole.read(member))
    container = open_source(InMemory(file.getvalue(), "m.pt2"))
    assert all(container.load(name).equal(value) for name, value in STATE.items())
