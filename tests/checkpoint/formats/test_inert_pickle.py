"""The inert unpickler has two ways through a pickle, one for those in memory; both give the same."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.checkpoint.formats import inert_pickle
from ssmdiag.checkpoint.formats.inert_pickle import InertUnpickler, StandIn
from ssmdiag.checkpoint.formats.torch_archive import BROKEN


@dataclass
class Chunk:
    offsets: Any
    name: str = "x"
    more: dict[str, Any] = field(default_factory=dict)


class File(io.BufferedReader):
    """A file that is not in memory."""


def plain(value: Any) -> Any:
    """Return what a pickle gave in a form that can be compared."""
    if isinstance(value, StandIn):
        return value.origin, plain(value.arguments), plain(value.items), plain(value.state)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [plain(item) for item in value]
    return value.__name__ if isinstance(value, type) else repr(value)


def read(content: bytes, *, in_memory: bool) -> Any:
    file = io.BytesIO(content) if in_memory else File(io.BytesIO(content))  # type: ignore[arg-type]
    try:
        return plain(InertUnpickler(file, {}, lambda pid: ("storage", pid)).load())
    except BROKEN:
        return "refused"


leaves = (
    st.none()
    | st.just(())
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=300)
    | st.floats()
    | st.binary()
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.tuples(inner)
        | st.tuples(inner, inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=4)
        | st.builds(Chunk, inner, st.text(max_size=2))
        | st.builds(OrderedDict, st.dictionaries(st.text(max_size=2), inner, max_size=2))
    ),
    max_leaves=30,
)


@given(trees, st.integers(0, 5))
def test_both_ways_give_the_same(tree: Any, protocol: int) -> None:
    content = pickle.dumps([tree, PurePosixPath("a/b"), {1, 2}, tree], protocol)
    found = read(content, in_memory=True)
    assert found == read(content, in_memory=False)
    assert found != "refused"


@given(trees, st.integers(0, 5), st.data())
def test_both_ways_refuse_the_same(tree: Any, protocol: int, data: st.DataObject) -> None:
    """A frame that is too long is the exception: in memory the frames of a pickle do not matter."""
    content = bytearray(pickle.dumps(tree, protocol).replace(pickle.FRAME, pickle.NONE))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if pickle.FRAME not in content:
        assert read(bytes(content), in_memory=True) == read(bytes(content), in_memory=False)


def test_a_memo_that_skips_numbers_takes_no_memory() -> None:
    """Number 2**32 − 1 is kept under nine bytes; a list up to it would take 32 GB."""
    content = b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\xff."
    assert read(content, in_memory=True) == read(content, in_memory=False) == repr(None)


@pytest.mark.parametrize("content", [b")" * 30 + b".", b"\x80\x04" + b"K\x01\x94" * 20 + b"."])
def test_instructions_are_counted(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inert_pickle, "FEWEST_STEPS", 25)
    with pytest.raises(pickle.UnpicklingError, match="too many instructions"):
        InertUnpickler(io.BytesIO(content), {}, lambda pid: None).load()


def test_instructions_taken_in_one_step_are_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps([Chunk((n, n)) for n in range(50)])
    steps = sum(1 for _ in content)
    monkeypatch.setattr(inert_pickle, "FEWEST_STEPS", steps)
    InertUnpickler(io.BytesIO(content), {}, lambda pid: None).load()
    monkeypatch.setattr(inert_pickle, "FEWEST_STEPS", 240)  # 50 times 5, those of making an object and its dict
    with pytest.raises(pickle.UnpicklingError, match="too many instructions"):
        InertUnpickler(io.BytesIO(content), {}, lambda pid: None).load()
