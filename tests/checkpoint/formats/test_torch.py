"""torch files: where the weights are in them, and that nothing of a pickle is ever run."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import os
import pickle
import struct
import subprocess
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import read_checkpoint
from ssmdiag.checkpoint.formats import inert_pickle
from ssmdiag.errors import CheckpointError, UnsafePickleError
from tests.checkpoint.formats.samples import torchscript

both_formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def save(content: object, path: Path, zipped: bool = True, protocol: int = 2) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


def zip_with(pickled: bytes, path: Path) -> Path:
    """Write a file as torch.save would, around any pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", b"\0" * 16)
        archive.writestr("archive/version", "3\n")
    return path


# --- values -------------------------------------------------------------------------------------


def tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(100.0)
    return {
        "float32": torch.randn(4, 3),
        "float64": torch.tensor([1e-300], dtype=torch.float64),
        "float16": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "complex64": torch.randn(3, 2, dtype=torch.complex64),
        "int64": torch.tensor(5),
        "bool": torch.tensor([True, False]),
        "transposed": torch.randn(3, 4).t(),
        "view": base[10:20:2],
        "same storage": base[:4],
        "expanded": torch.randn(1).expand(7),
        "empty": torch.empty(0, 3),
        "conjugate bit": torch.randn(3, dtype=torch.complex64).conj(),
        "negative bit": torch.randn(3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor_reads_back(zipped: bool, protocol: int, tmp_path: Path) -> None:
    state = tensors()
    checkpoint = read_checkpoint(save(state, tmp_path / "m.pt", zipped, protocol))
    assert checkpoint.format == ("torch zip" if zipped else "torch pickle, old format")
    assert list(checkpoint) == list(state)
    assert checkpoint.notes == ()
    for name, value in state.items():
        stored = checkpoint[name]
        loaded = stored.load()
        assert stored.shape == tuple(value.shape)
        assert stored.dtype == str(value.dtype).removeprefix("torch.")
        assert loaded.dtype == value.dtype
        assert loaded.to(torch.complex128).equal(value.detach().to(torch.complex128))
        assert not loaded.requires_grad


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32], ids=str)
def test_newer_dtypes_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([1.0, 2.0, 8.0]).to(dtype)
    stored = read_checkpoint(save({"w": values}, tmp_path / "m.pt"))["w"]
    assert (stored.dtype, stored.nbytes) == (str(dtype).removeprefix("torch."), values.nbytes)
    assert stored.load().double().tolist() == [1, 2, 8]


def test_compressed_archives_read_back(tmp_path: Path) -> None:
    """Some hosts zip files again."""
    plain = save({"w": torch.arange(1000.0)[5:]}, tmp_path / "m.pt")
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert read_checkpoint(tmp_path / "z.pt")["w"].load().equal(torch.arange(1000.0)[5:])


def test_packed_tensors_are_left_out_with_a_note(tmp_path: Path) -> None:
    state = {"w": torch.ones(2), "q": torch.eye(2).to_sparse(), "s": torch.eye(3).to_sparse()}
    checkpoint = read_checkpoint(save(state, tmp_path / "m.pt"))
    assert list(checkpoint) == ["w"]
    assert checkpoint.notes == ("2 quantised, sparse or otherwise packed tensors were left out: q, s",)


# --- where the weights are ----------------------------------------------------------------------

WEIGHTS = {"layer.A_log": torch.ones(2, 2), "layer.D": torch.ones(2)}


@both_formats
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net", "module", "params", "ema"])
def test_the_state_dict_is_found_under_the_keys_trainers_use(key: str, zipped: bool, tmp_path: Path) -> None:
    content = {key: WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "best": torch.tensor(0.5)}
    checkpoint = read_checkpoint(save(content, tmp_path / "m.pt", zipped))
    assert set(checkpoint) == set(WEIGHTS)


def test_nested_mappings_become_dotted_names(tmp_path: Path) -> None:
    content = {"encoder": {"layers": [{"A_log": torch.ones(2)}, {"A_log": torch.zeros(2)}]}, "D": torch.ones(1)}
    checkpoint = read_checkpoint(save(content, tmp_path / "m.pt"))
    assert list(checkpoint) == ["encoder.layers.0.A_log", "encoder.layers.1.A_log", "D"]


def test_weights_that_were_not_chosen_are_mentioned(tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "ema": {"layer.D": torch.zeros(2)}, "optimizer_states": [{"x": torch.ones(1)}]}
    checkpoint = read_checkpoint(save(content, tmp_path / "m.pt"))
    assert checkpoint["layer.D"].load().tolist() == [1, 1]
    assert checkpoint.notes == ("the weights under 'state_dict' were read; tensors under 'ema' were not",)


def test_a_file_without_tensors_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="its top level has epoch, lr") as caught:
        read_checkpoint(save({"epoch": 3, "lr": 0.1}, tmp_path / "m.pt"))
    assert "state_dict" in str(caught.value.expected)


class Colour(enum.Enum):
    red = "red"


class Attributes(dict):  # type: ignore[type-arg]
    """As easydict, addict and Lightning's AttributeDict."""


class Settings:
    def __init__(self) -> None:
        self.disc = "zoh"
        self.nested = argparse.Namespace(l_max=1024, parts=[1, 2])


class AnyNode:
    """As omegaconf keeps a leaf and a container."""

    def __init__(self, value: object) -> None:
        self._metadata = None
        self._val = value


class DictConfig:
    def __init__(self, content: dict[str, object]) -> None:
        self._metadata = collections.defaultdict(dict, {dict: {"ref": Any}})
        self._content = content


class Kind(enum.Enum):
    """Pickles its members as some releases of Python 3.11 do."""

    zoh = "a value that is not in the file then"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (Kind, self.name)


@both_formats
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_member_of_an_enum_is_known_by_its_name_at_least(zipped: bool, protocol: int, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "hyper_parameters": {"disc": Kind.zoh, "cls": Kind}}
    assert read_checkpoint(save(content, tmp_path / "m.ckpt", zipped, protocol)).settings == {"disc": "zoh"}


@both_formats
@pytest.mark.parametrize("protocol", [2, 4])
def test_settings_of_objects_are_read_without_their_classes(zipped: bool, protocol: int, tmp_path: Path) -> None:
    hyper_parameters = Attributes(
        colour=Colour.red,
        path=Path("/data/x"),
        size=torch.Size([2, 3]),
        namespace=argparse.Namespace(lr=0.1, flags={"a": True}),
        model=DictConfig({"disc": AnyNode("bilinear"), "layer": DictConfig({"l_max": AnyNode(7)})}),
        settings=Settings(),
        nothing=None,
        betas=(0.9, 0.999),
        blocks=[{"kind": "mamba"}, {"kind": AnyNode("attention")}],
        reference="${settings.disc}",
        unknown="${oc.env:HOME}",
    )
    content = {"state_dict": WEIGHTS, "hyper_parameters": hyper_parameters, "global_step": 300, "epoch": 2}
    checkpoint = read_checkpoint(save(content, tmp_path / "m.ckpt", zipped, protocol))
    assert checkpoint.train_step == 300
    assert checkpoint.settings == {
        "colour": "red",
        "path": "/data/x",
        "size": [2, 3],
        "namespace.lr": 0.1,
        "namespace.flags.a": True,
        "model.disc": "bilinear",
        "model.layer.l_max": 7,
        "settings.disc": "zoh",
        "settings.nested.l_max": 1024,
        "settings.nested.parts": [1, 2],
        "nothing": None,
        "betas": [0.9, 0.999],
        "blocks.0.kind": "mamba",
        "blocks.1.kind": "attention",
        "reference": "zoh",
    }
    assert checkpoint.notes == ("objects of tests were read as plain data",)


@both_formats
def test_a_whole_pickled_module_gives_its_state_dict(zipped: bool, tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.TransformerEncoderLayer(8, 2, batch_first=True), torch.nn.BatchNorm1d(3)
    )
    checkpoint = read_checkpoint(save(model, tmp_path / "m.pt", zipped))
    state = model.state_dict()
    assert list(checkpoint) == list(state)
    assert all(checkpoint[name].load().equal(value) for name, value in state.items())
    assert set(read_checkpoint(save({"model": model, "step": 4}, tmp_path / "n.pt", zipped))) == set(state)


def test_modules_that_contain_themselves_end(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    module._modules["again"] = module
    settings: dict[str, Any] = {"lr": 1}
    settings["self"] = settings
    content = {"model": module, "config": settings, "loop": [settings]}
    checkpoint = read_checkpoint(save(content, tmp_path / "m.pt"))
    assert list(checkpoint) == ["weight", "bias"]
    assert checkpoint.settings["lr"] == 1


def test_torchscript_gives_its_state_dict_and_none_of_its_code_is_run(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Sequential(torch.nn.BatchNorm1d(4)), torch.nn.Linear(4, 2)
    )
    (tmp_path / "m.pt").write_bytes(torchscript(model.bfloat16()))
    checkpoint = read_checkpoint(tmp_path / "m.pt")
    state = model.state_dict()
    assert set(checkpoint) == state.keys()
    assert all(checkpoint[name].load().equal(value) for name, value in state.items())
    assert (checkpoint.format, checkpoint.notes) == ("TorchScript", ())


def test_a_pickle_of_arrays_is_told_apart_from_a_torn_file(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"W": [1.0, 2.0], "lr": 0.3}))
    with pytest.raises(CheckpointError, match=r"torch\.save did not write") as caught:
        read_checkpoint(tmp_path / "m.pkl")
    assert "numpy.savez" in str(caught.value.advice)


# --- damage -------------------------------------------------------------------------------------


@both_formats
@pytest.mark.parametrize("cut", [0.02, 0.3, 0.7, 0.99])
def test_a_torn_file_is_called_torn(cut: float, zipped: bool, tmp_path: Path) -> None:
    path = save({"w": torch.randn(500), "x": torch.randn(500)}, tmp_path / "m.pt", zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(CheckpointError, match="torn") as caught:
        read_checkpoint(path)
    assert not isinstance(caught.value, UnsafePickleError)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth"])
@pytest.mark.parametrize(
    "content", [b"\x80", b"not a checkpoint", b"\0" * 64, pickle.dumps({"a": 1}), b"\x80\x02K\x01."]
)
def test_what_torch_did_not_write_is_a_known_problem(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="torn or not a torch checkpoint"):
        read_checkpoint(path)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("flip", [0x01, 0x20, 0xFF])
def test_any_flipped_byte_of_the_pickle_is_read_or_a_known_problem(flip: int, tmp_path: Path) -> None:
    source = save({"state_dict": {"w": torch.ones(4)}, "hyper_parameters": {"lr": 0.1}}, tmp_path / "m.pt")
    with zipfile.ZipFile(source) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        pickled = archive.read(member)
    outcomes = collections.Counter[str]()
    for position in range(len(pickled)):
        damaged = bytearray(pickled)
        damaged[position] ^= flip
        try:
            checkpoint = read_checkpoint(zip_with(bytes(damaged), tmp_path / "d.pt"))
            for stored in checkpoint.values():
                stored.load()
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 0
    assert outcomes["refused"] > 0


def rebuild(storage: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Return a pickle of {"w": tensor} over a 16-byte storage, with any numbers."""

    def integer(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    pid = b"(" + text("storage") + b"ctorch\n" + storage.encode() + b"\n" + text("0") + text("cpu") + integer(4) + b"tQ"
    body = b"(" + pid + integer(offset) + numbers(size) + numbers(stride) + b"\x89N" + b"t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + body + b"Rs."


def test_a_hand_made_tensor_reads(tmp_path: Path) -> None:
    path = zip_with(rebuild("FloatStorage", 0, (2, 2), (2, 1)), tmp_path / "m.pt")
    assert read_checkpoint(path)["w"].load().tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (4,), (1,)),
        (0, (5,), (1,)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2, 2), (4, 1)),
        (0, (2,), (1, 1)),
        (0, (2**40, 2**20), (0, 0)),
        (2**62, (1,), (1,)),
    ],
)
def test_tensors_that_reach_outside_their_storage_are_refused(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    path = zip_with(rebuild("FloatStorage", offset, size, stride), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="torn"):
        read_checkpoint(path)


def test_a_storage_shorter_than_announced_is_a_problem_of_its_tensor(tmp_path: Path) -> None:
    path = zip_with(rebuild("DoubleStorage", 0, (4,), (1,)), tmp_path / "m.pt")
    checkpoint = read_checkpoint(path)
    with pytest.raises(CheckpointError, match="ends after 16 of 32 bytes"):
        checkpoint["w"].load()


# --- pickles that want to run something -----------------------------------------------------------


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(marker: Path) -> dict[str, bytes]:
    """Return pickles that would create `marker` if they ran, by the trick they use."""
    shell = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    line = shell.encode() + b"\n"
    text = b"X" + struct.pack("<I", len(shell)) + shell.encode()

    def short(word: str) -> bytes:
        return b"\x8c" + bytes([len(word)]) + word.encode()

    return {
        "os.system": pickle.dumps(Calls(os.system, shell), 2),
        "protocol 4": pickle.dumps(Calls(os.system, shell), 4),
        "subprocess": pickle.dumps(Calls(subprocess.check_call, ["touch", str(marker)]), 2),
        "eval": pickle.dumps(Calls(eval, code), 2),
        "exec": pickle.dumps(Calls(exec, code), 2),
        "exec, python 2": b"\x80\x02c__builtin__\nexec\n" + b"(" + text + b"tR.",
        "global and reduce": b"\x80\x02cposix\nsystem\n(" + text + b"tR.",
        "inst": b"(S'" + shell.encode() + b"'\niposix\nsystem\n.",
        "obj": b"(cposix\nsystem\n" + text + b"o.",
        "newobj": b"\x80\x02cposix\nsystem\n(" + text + b"t\x81.",
        "stack global": b"\x80\x04" + short("posix") + short("system") + b"\x93(" + text + b"tR.",
        "dotted stack global": b"\x80\x04" + short("torch") + short("hub.os.system") + b"\x93(" + text + b"tR.",
        "module attribute": b"\x80\x02ctorch.serialization\nos\n0cposix\nsystem\n(" + text + b"tR.",
        "getattr on a module": b"cbuiltins\ngetattr\n(ctorch.hub\nos\nX\x06\0\0\0systemtR(" + text + b"tR.",
        "getattr on a class": b"\x80\x02cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x0e\0\0\0__subclasses__tR)R.",
        "import": b"\x80\x02cimportlib\nimport_module\n(X\x02\0\0\0ostR.",
        "__import__": b"\x80\x02cbuiltins\n__import__\n(X\x02\0\0\0ostR.",
        "pickle in a pickle": pickle.dumps(Calls(pickle.loads, pickle.dumps(Calls(os.system, shell))), 2),
        "runpy": b"\x80\x02crunpy\nrun_path\n(" + text + b"tR.",
        "code object": b"\x80\x02ctypes\nCodeType\n)R.",
        "function object": b"\x80\x02ctypes\nFunctionType\n)R.",
        "beside weights": pickle.dumps({"state_dict": {"w": 1}, "x": Calls(os.system, shell)}, 2),
        "unused name": b"\x80\x02cposix\nsystem\n0}.",
        "shutil": b"\x80\x02cshutil\nrmtree\n(" + text + b"tR.",
        "socket": b"\x80\x02csocket\ncreate_connection\n)R.",
        "profile": b"\x80\x02ccProfile\nrun\n(" + text + b"tR.",
        "lines": b"cposix\nsystem\n(S'" + line[:-1] + b"'\ntR.",
    }  # fmt: skip


ATTACKS = sorted(attacks(Path("x")))


@pytest.mark.parametrize(
    "trick", ["os.system", "protocol 4", "subprocess", "eval", "inst", "obj", "stack global", "lines"]
)
def test_the_attacks_of_these_tests_are_live(trick: str, tmp_path: Path) -> None:
    pickle.loads(attacks(tmp_path / "marker")[trick])
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("trick", ATTACKS)
def test_a_pickle_that_names_code_is_refused_and_nothing_runs(trick: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    pickled = attacks(marker)[trick]
    path = zip_with(pickled, tmp_path / "m.pt")
    old = tmp_path / "old.bin"
    header = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    old.write_bytes(header + pickled)
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickled)
    for file in (path, old, bare):
        with pytest.raises(
            UnsafePickleError, match=r"is refused: its pickle calls for .*Nothing of it was run"
        ) as caught:
            read_checkpoint(file)
        assert caught.value.advice
    assert not marker.exists()


UNLISTED = {
    "a function of another package": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(X\x05\0\0\01/0#x}tR.",
    "torch.load": b"\x80\x02ctorch\nload\n(X\x01\0\0\0xtR.",
    "build on a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0aK\x01sb.",
    "slots of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b.",
    "build on a class": b"\x80\x02ccollections\nOrderedDict\n}X\x0b\0\0\0__setitem__K\x01sb.",
    "append to a class": b"\x80\x02cpackage\nThing\nK\x01a.",
    "set an item of a class": b"\x80\x02ctorch.nn.parameter\nParameter\nK\x01K\x02s.",
    "call the result of a call": b"\x80\x02cpackage\nThing\n)R)R)R.",
    "attribute of a method": b"\x80\x02cbuiltins\ngetattr\n(cpackage\nThing\nX\x06\0\0\0methodtR)R.",
    "extension code": b"\x80\x02\x82\x01.",
    "unknown persistent id": b"\x80\x02X\x01\0\0\0xQ.",
    "no stack": b"\x80\x02R.",
    "a memo number that would take 34 GB": b"\x80\x02}r\0\0\0\x7f.",
    "a memo number that would take more": b"}p99999999999999\n.",
    "bytes that would take 4 GB": b"\x80\x03B\xff\xff\xff\xff.",
    "a byte array that would take 64 GB": b"\x80\x05\x96\0\0\0\0\x10\0\0\0.",
    "nested without end": b"\x80\x02" + b"}K\x01" * 20_000 + b"}" + b"s" * 20_000 + b".",
}


def contents() -> dict[str, dict[str, object]]:
    """Return what every class and function of the inert reader holds."""
    kinds = (type, types.FunctionType)
    return {name: dict(vars(value)) for name, value in vars(inert_pickle).items() if isinstance(value, kinds)}


@pytest.mark.parametrize("trick", sorted(UNLISTED))
def test_other_pickles_change_nothing_outside_themselves(trick: str, tmp_path: Path) -> None:
    """Even where no name is refused, all that is called or changed are stand-ins made for this file."""
    before = contents()
    rebuilt = torch._utils._rebuild_tensor_v2.__defaults__
    with pytest.raises(CheckpointError):
        read_checkpoint(zip_with(UNLISTED[trick], tmp_path / "m.pt"))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == rebuilt
    assert contents() == before


def test_a_name_only_ever_becomes_a_class_of_ours() -> None:
    """No object of another module is reachable: what `find_class` returns was made for inert reading."""
    unpickler = inert_pickle.InertUnpickler(io.BytesIO(), {}, lambda pid: None)
    for name in ("torch.load", "collections.OrderedDict", "builtins.getattr", "numpy.load", "builtins.print", "a.b"):
        found = unpickler.find_class(*name.rsplit(".", 1))
        assert isinstance(found, type)
        assert found.__module__ == "ssmdiag.checkpoint.formats.inert_pickle"
        assert hasattr(found, "__setstate__")


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = set(map(str, torch.serialization.get_safe_globals()))
    read_checkpoint(save({"state_dict": WEIGHTS, "cfg": argparse.Namespace(a=1)}, tmp_path / "m.pt"))
    assert set(map(str, torch.serialization.get_safe_globals())) == before
