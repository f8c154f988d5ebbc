"""flax msgpack: what flax wrote is read to the bit, lazily; what was made to mislead is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import diagnose, known_families, read_checkpoint
from ssmdiag.checkpoint.formats import flax_msgpack, msgpack
from ssmdiag.checkpoint.formats.interface import LONGEST_HEAD
from ssmdiag.checkpoint.opening import open_source
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import CheckpointError
from ssmdiag.reports.json import layer_document
from tests.checkpoint.formats.flax_files import EVERY_KIND, S5_TRAIN_STATE, array, chunked, nested, pack
from tests.checkpoint.sources.memory import InMemory
from tests.families.synthetic import state_dict

JAX = [
    spelling
    for family in known_families()
    if family.name in ("s5", "lru")
    for spelling in family.spellings
    if not any(pattern.startswith("complex") for pattern in spelling.tensors.values())
]
"""Spellings that a JAX model may have too."""


def opened(content: bytes, name: str = "m.msgpack") -> flax_msgpack.FlaxFile:
    container = open_source(InMemory(content, name))
    assert isinstance(container, flax_msgpack.FlaxFile)
    return container


def refused(content: bytes) -> str:
    with pytest.raises(CheckpointError, match=r"m\.msgpack is torn or not a checkpoint of flax") as caught:
        opened(content)
    return caught.value.seen


def test_every_kind_of_array_that_flax_writes_is_read_to_the_bit() -> None:
    container = opened(EVERY_KIND)
    expected = {
        "a": torch.tensor([0.5, 1.5, 2.5], dtype=torch.bfloat16),
        "z": torch.tensor([1 + 2j], dtype=torch.complex64),
        "flag": torch.tensor([True, False]),
        "e": torch.empty(0, 3, dtype=torch.float16),
        "s": torch.tensor(2.5, dtype=torch.float64),
        "zero": torch.tensor(7.0),
        "i8": torch.tensor([-1], dtype=torch.int8),
        "f8": torch.tensor([1.5]).to(torch.float8_e4m3fn),
        "big": torch.arange(40, dtype=torch.float32).reshape(5, 8),
    }
    assert set(container.names()) == expected.keys()
    for name, value in expected.items():
        assert (container.shape(name), container.dtype(name)) == (tuple(value.shape), str(value.dtype)[6:]), name
        found = container.load(name)
        assert found.dtype == value.dtype
        assert torch.equal(found.to(torch.complex128), value.to(torch.complex128)), name
    assert container.notes == ["1 array of int4 not read"]
    assert container.train_step == 3


def test_a_train_state_is_its_parameters_and_its_step(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_1.msgpack"
    path.write_bytes(S5_TRAIN_STATE)
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == "flax msgpack"
    assert checkpoint.train_step == 1
    assert checkpoint["encoder.layers_0.norm.scale"].load().dtype == torch.bfloat16
    assert not any("opt_state" in name or name.endswith("mu") for name in checkpoint)
    assert checkpoint.notes == ()
    result = diagnose(checkpoint)
    assert [(layer.name, layer.family) for layer in result.layers] == [
        ("encoder.layers_0.seq", "s5"), ("encoder.layers_1.seq", "s5"),
    ]  # fmt: skip
    assert result.problems == ()


def numbers(result: Diagnosis) -> list[str]:
    return [json.dumps(layer_document(layer)) for layer in result.layers]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("spelling", JAX, ids=lambda spelling: spelling.name)
def test_a_layer_is_the_same_in_flax_and_in_safetensors(
    spelling: Any, write_model: Callable[..., Path], tmp_path: Path
) -> None:
    state = state_dict(spelling, path="encoder.layers_2.seq")
    (tmp_path / "m.msgpack").write_bytes(pack({"params": nested(state)}))
    ours, theirs = diagnose(tmp_path / "m.msgpack"), diagnose(write_model(state))
    assert ours.layers
    assert [json.dumps(layer_document(a)) for a in ours.layers] == [
        json.dumps(layer_document(b)) for b in theirs.layers
    ]


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda tree: tree, ""),
        (lambda tree: {"params": tree}, ""),
        (
            lambda tree: {"target": tree, "state": {"mu": tree}},
            "the weights under 'target' were read; arrays under state",
        ),
        (
            lambda tree: {"model": {"params": tree, "ema": tree}},
            "the weights under 'model.params' were read; arrays under ema",
        ),
        (lambda tree: {**tree, "opt_state": {"0": {"mu": tree}}}, ""),
    ],
)  # fmt: skip
def test_the_weights_are_found_where_scripts_put_them(wrap: Callable[[Any], Any], said: str) -> None:
    container = opened(pack(wrap({"layer": {"w": torch.ones(3)}})))
    assert container.names() == ["layer.w"]
    assert [note.partition(" were not")[0] for note in container.notes] == ([said] if said else [])


def test_what_stands_beside_the_weights_is_settings_and_step() -> None:
    config = {"d_model": 64, "ssm": {"dt_min": 0.001, "kind": "s5"}, "long": list(range(20))}
    container = opened(
        pack({"params": {"w": torch.ones(2)}, "config": config, "step": torch.tensor(70, dtype=torch.int32)})
    )
    assert container.train_step == 70
    assert container.settings["config.ssm.dt_min"] == 0.001
    assert container.settings["config.d_model"] == 64
    assert container.settings["config.long"] == list(range(20))


def test_only_what_is_asked_for_is_read() -> None:
    state = {f"w{i}": torch.full((50_000,), float(i)) for i in range(8)}
    source = InMemory(pack({"params": state}), "m.msgpack")
    container = open_source(source)
    assert sum(length for _, length in source.pieces) <= LONGEST_HEAD
    source.pieces.clear()
    assert torch.equal(container.load("w3"), state["w3"])
    assert [length for _, length in source.pieces] == [200_000]


@pytest.mark.parametrize("count", [3, 12, 200])
def test_an_array_in_pieces_is_joined_in_their_order(count: int) -> None:
    value = torch.arange(600, dtype=torch.int64).reshape(3, 10, 20)
    container = opened(pack({"params": {"big": chunked(value, -(-600 // count)), "small": torch.ones(1)}}))
    assert container.shape("big") == (3, 10, 20)
    assert torch.equal(container.load("big"), value)


PIECES = chunked(torch.arange(6.0), 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (array((4,), "float32", bytes(12)), "has 12 bytes"),
        (array((2**62, 4), "float32", bytes(16)), "without shape"),
        (array((-1,), "float32", b""), "without shape"),
        (array((2**40,), "float32", bytes(16)), "has 16 bytes"),
        (array((0,) * 65, "float32", b""), "without shape"),
        (b"\xc1", "byte 0xc1 is not a msgpack type"),
        (pack({"__msgpack_chunked_array__": True}), "lacks its shape"),
        (pack({**PIECES, "shape": {"0": 7}}), "do not make one of shape (7,)"),
        (pack({**PIECES, "chunks": {"0": torch.ones(4), "1": torch.ones(2).double()}}), "do not make one"),
        (pack({**PIECES, "chunks": {"0": torch.ones(3), "2": torch.ones(3)}}), "lacks its shape or its pieces"),
        (b"\x82\xa1a\x01\xa1a\x02", "occurs twice"),
        (b"\x81\xa1a" * 80, "nested more than 64 deep"),
        (b"\x91" * 80 + b"\xc0", "nested more than 64 deep"),
        (b"\x81\xc0\xc0", "neither text nor a number"),
        (b"\xdf\xff\xff\xff\xff", "within a mapping of 4,294,967,295"),
        (b"\xdd\xff\xff\xff\xff", "within a list of 4,294,967,295"),
        (b"\xdb\xff\xff\xff\xff", "within a value"),
        (b"\xc6\xff\xff\xff\xff", "within a value"),
        (b"\xc9\xff\xff\xff\xff\x01", "within an array"),
        (b"\xd5\x01\x92\xc0", "not a triple"),
        (b"\x81\xa2\xff\xff\xc0", "codec can't decode"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_for_what_it_is(value: bytes, said: str) -> None:
    assert said in refused(b"\x82\xa6params\x81\xa1w" + pack(torch.ones(1)) + b"\xa1x" + value)


def test_bytes_after_the_end_and_a_root_without_names_are_refused() -> None:
    assert "5 bytes follow its end" in refused(pack({"params": {"w": torch.ones(1)}}) + b"more!")
    assert "its top level is not a mapping" in refused(pack([1, 2]))


def test_msgpack_without_arrays_says_what_it_holds() -> None:
    with pytest.raises(CheckpointError, match=r"without arrays of numbers \(its top level has model, step\)"):
        opened(pack({"model": "mamba", "step": 3}))


def test_names_and_values_have_a_most(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: dict[str, Any] = {"w": torch.ones(1)}
    for _ in range(10):
        deep = {"k" * 500: deep}
    assert "the name of an array has 5,011 characters" in refused(pack({"params": deep}))
    assert "a key has 2,000 characters" in refused(pack({"params": {"k" * 2000: torch.ones(1)}}))
    monkeypatch.setattr(msgpack, "MOST_VALUES", 1000)
    assert "more than 1,000 values" in refused(pack({"x": [1] * 1000}))


def test_two_arrays_of_one_dotted_name_are_refused() -> None:
    assert "two arrays are called a.b" in refused(pack({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}))


def test_a_step_that_is_no_step_is_none() -> None:
    for step in (-1, 2**62, 1.5, "7e", torch.ones(2), torch.tensor(2.0)):
        assert opened(pack({"params": {"w": torch.ones(1)}, "step": step})).train_step is None


def test_weights_in_boxes_have_the_names_of_the_boxes(tmp_path: Path) -> None:
    """As flax writes what nn.with_partitioning made, beside weights that are in none."""
    boxed = {"layers_0": {"A_log": {"value": torch.ones(2)}, "D": torch.ones(3)}, "value": {"kernel": torch.ones(1)}}
    container = opened(pack({"params": boxed}))
    assert container.names() == ["layers_0.A_log", "layers_0.D", "value.kernel"]
    attention = {"attn": {"value": torch.ones(1), "key": torch.ones(1)}}
    assert opened(pack({"params": attention})).names() == ["attn.value", "attn.key"]
