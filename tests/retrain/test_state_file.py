"""The file of a resumable state: every value comes back as it was; any other file is refused in a sentence."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.state_file import read_state, write_state

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
VALUES: dict[str, Any] = {
    "plain": [None, True, -3, 0.1, math.inf, -0.0, "β", (1, (2.5,), [])],
    "by number": {0: {"step": torch.tensor(7.0)}, 1: {}},
    "tensors": {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES},
    "scalars": {str(dtype): torch.ones((), dtype=dtype) for dtype in DTYPES},
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "conjugate": torch.tensor([1 + 2j]).conj(),
    "nan": torch.tensor([math.nan, -0.0]),
}


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        plain, other = one.resolve_conj().contiguous(), other.resolve_conj().contiguous()
        bits = plain.reshape(-1).view(torch.uint8)
        return (
            plain.dtype == other.dtype
            and plain.shape == other.shape
            and bits.equal(other.reshape(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state-0.state"
    write_state(path, VALUES)
    return path


def test_every_value_comes_back_with_its_bits(state: Path) -> None:
    assert same(read_state(state), VALUES)


def test_two_names_of_one_tensor_are_stored_once(tmp_path: Path) -> None:
    weight = torch.randn(1000)
    write_state(tmp_path / "state", {"a": weight, "b": weight.detach(), "c": weight[1:]})
    assert (tmp_path / "state").stat().st_size < 2.2 * 4000
    there = read_state(tmp_path / "state")
    assert same(there, {"a": weight, "b": weight, "c": weight[1:]})


@pytest.mark.one_in(4)
@pytest.mark.parametrize("first", range(4))
def test_any_flipped_bit_is_found(first: int, state: Path) -> None:
    content, generator = state.read_bytes(), random.Random(first)
    for place in range(first, len(content), 4):
        torn = bytearray(content)
        torn[place] ^= 1 << generator.randrange(8)
        state.write_bytes(torn)
        with pytest.raises(SsmdiagError) as caught:
            read_state(state)
        assert state.name in caught.value.seen
        assert caught.value.advice


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[:-1],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut in the head": lambda content: content[:30],
    "empty": lambda content: b"",
    "longer": lambda content: content + b"\0",
    "twice": lambda content: content * 2,
    "another file": lambda content: b"x" * 999,
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage: str, state: Path) -> None:
    state.write_bytes(DAMAGES[damage](state.read_bytes()))
    with pytest.raises(SsmdiagError, match=r"state-0.state: (damaged|not a state to resume from)") as caught:
        read_state(state)
    assert "delete it to start these arms anew" in str(caught.value.advice)


def test_a_state_of_an_earlier_version_is_refused_with_its_version(tmp_path: Path) -> None:
    torch.save({"version": 1, "step": 3}, tmp_path / "state-1.state")
    with pytest.raises(SsmdiagError, match="a state of version '1', saved by another version of ssmdiag"):
        read_state(tmp_path / "state-1.state")


def test_a_pipe_or_a_device_is_refused_without_being_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(SsmdiagError, match="not a regular file"):
            read_state(tmp_path / name)


def sealed(path: Path, values: str, tensors: str = "[]", rest: bytes = b"") -> Path:
    """Write a file whose digests are right, whatever is in it."""
    import hashlib

    head = f'{{"values": {values}, "tensors": {tensors}, "sha256": "{hashlib.sha256(rest).hexdigest()}"}}'.encode()
    first = f"ssmdiag retrain state 2\n{hashlib.sha256(head).hexdigest()} {len(head)}\n"
    path.write_bytes(first.encode() + head + rest)
    return path


@pytest.mark.parametrize(
    ("values", "tensors"),
    [
        ("[" * 100_000, "[]"),
        ('{"a": {"tensor": 5}}', "[]"),
        ('{"a": {"mapping": [[[], 1]]}}', "[]"),
        ('{"a": {}}', "[]"),
        ("1" * 5000, "[]"),
        ("{}", '[["float32", [1000000000000]]]'),
        ("{}", '[["float32", [-1]]]'),
        ("{}", '[["load", []]]'),
        ("{}", '[["float32", [0, 1e300]]]'),
        ("{}", "7"),
        ("7", "[]"),
    ],
)
def test_a_file_made_to_do_harm_is_refused(values: str, tensors: str, tmp_path: Path) -> None:
    with pytest.raises(SsmdiagError, match=r"damaged|not a state to resume from"):
        read_state(sealed(tmp_path / "state", values, tensors))


def test_a_value_that_cannot_be_kept_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot hold weights\.layer\.extra, which is complex") as caught:
        write_state(tmp_path / "state", {"weights": {"layer.extra": 1j}})
    assert "leave out --output" in str(caught.value.advice)
    assert not list(tmp_path.iterdir())
