"""What every format owes: it knows its own files and no others, reads what was written and refuses the rest by name."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag import SsmdiagError, guard, read_checkpoint
from ssmdiag.checkpoint.formats import FirstLook, Format, Refusal, known_formats, suffixes
from ssmdiag.checkpoint.opening import open_source
from ssmdiag.errors import CheckpointError
from tests.checkpoint.formats.samples import SAMPLES, STATE
from tests.checkpoint.sources.memory import InMemory

READ = [format for format in known_formats() if format.open and not format.envelope]
every_sample = pytest.mark.parametrize("sample", SAMPLES)
every_refusal = pytest.mark.parametrize(
    "refusal", [refusal for format in known_formats() for refusal in format.refusals], ids=lambda refusal: refusal.what
)


def written(sample: str, folder: Path) -> InMemory:
    _, name, write = SAMPLES[sample]
    return InMemory(write(STATE, folder), name)


def claims(content: bytes, name: str = "m") -> list[str]:
    """Return the formats that claim a file by its content, envelopes left out."""
    look = FirstLook(InMemory(content, name))
    return [format.name for format in known_formats() if not format.envelope and format.recognises(look)]


def test_every_format_that_is_read_has_a_sample_and_a_suffix() -> None:
    assert {format.name for format in READ} == {format for format, _, _ in SAMPLES.values()}
    assert all(format.suffixes for format in READ)
    assert len(suffixes()) == len(set(suffixes()))


@every_sample
def test_a_file_is_known_by_its_content_alone(sample: str, tmp_path: Path) -> None:
    format, _, write = SAMPLES[sample]
    assert claims(write(STATE, tmp_path), "without-a-suffix") == [format]


@given(st.integers(2, 100_000_000))
def test_no_length_of_a_header_makes_a_safetensors_file_another(length: int) -> None:
    """Its first bytes are a number, which can look like the first bytes of anything."""
    assert claims(struct.pack("<Q", length) + b'{"A_log":{"dtype"') == ["safetensors"]


@every_sample
def test_what_is_read_from_a_source_is_what_was_written(sample: str, tmp_path: Path) -> None:
    """From one without a file: nothing behind the path is looked at."""
    source = written(sample, tmp_path)
    container = open_source(source)
    assert set(container.names()) == STATE.keys()
    assert container.path == source.path
    assert container.format
    for name, value in STATE.items():
        assert (container.shape(name), container.dtype(name)) == (tuple(value.shape), str(value.dtype)[6:])
        loaded = container.load(name)
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)
        loaded.zero_()  # what is loaded is the caller's own
        assert torch.equal(container.load(name), value)


@pytest.mark.one_in(2)
@every_sample
def test_a_cut_file_is_refused_by_name(sample: str, tmp_path: Path) -> None:
    source = written(sample, tmp_path)
    content = bytes(source.read(0, source.size))
    path = tmp_path / f"cut-{source.name}"
    for length in (*range(0, 40), *range(40, len(content), max(1, len(content) // 60))):
        path.write_bytes(content[:length])
        refused = False
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            refused = path.name in error.seen and bool(error.advice)
        # A few formats end in padding, without which the file is whole.
        assert refused or all(torch.equal(checkpoint[name].load(), value) for name, value in STATE.items()), length


@pytest.mark.one_in(2)
@every_sample
def test_a_damaged_file_is_read_or_refused_by_name(sample: str, tmp_path: Path) -> None:
    source = written(sample, tmp_path)
    content = bytes(source.read(0, source.size))
    path = tmp_path / f"damaged-{source.name}"
    dice = random.Random(sample)
    for _ in range(120):
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(min(len(damaged), dice.choice((64, 512, 10**9))))] = dice.randrange(256)
        path.write_bytes(damaged)
        try:
            for stored in read_checkpoint(path).values():
                assert stored.load().shape == stored.shape
        except SsmdiagError as error:
            assert path.name in str(error)  # noqa: PT017


@every_refusal
def test_what_is_not_read_says_what_it_is_and_what_to_do(refusal: Refusal, tmp_path: Path) -> None:
    assert refusal.magic or refusal.name or refusal.folder
    assert refusal.advice.format(folder=tmp_path)
    for magic in refusal.magic:
        (tmp_path / "m").write_bytes(magic + bytes(300))
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "m")
        assert caught.value.seen == f"m is {refusal.what}."
        assert caught.value.advice == refusal.advice.format(folder=tmp_path)


def test_formats_are_listed_without_what_takes_long_to_import() -> None:
    code = "import sys; from ssmdiag.checkpoint.formats import known_formats; assert len(known_formats()) > 5; "
    code += "assert not {'torch', 'numpy', 'safetensors', 'msgpack'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- formats of other packages --------------------------------------------------------------------


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[object], None]]:
    """Make another package's entry point of this value visible."""

    def forget() -> None:
        known_formats.cache_clear()
        suffixes.cache_clear()

    def use(value: object) -> None:
        module = ModuleType("foreign_package")
        module.__dict__["FORMAT"] = value
        monkeypatch.setitem(sys.modules, "foreign_package", module)
        entries = [EntryPoint("foreign", "foreign_package:FORMAT", "ssmdiag.formats")]
        monkeypatch.setattr(guard, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
        forget()

    yield use
    forget()


def test_a_format_of_another_package_opens_its_files(plug: Callable[[object], None], tmp_path: Path) -> None:
    def read(source: InMemory) -> object:
        """Return what stands behind the four letters of the name, as a safetensors file."""
        inside = InMemory(bytes(source.read(4, source.size - 4)), source.name)
        return open_source(inside)

    theirs = Format("theirs", lambda look: look.head.startswith(b"MINE"), read, suffixes=(".mine",))  # type: ignore[arg-type]
    plug(theirs)
    (tmp_path / "m.mine").write_bytes(b"MINE" + SAMPLES["safetensors"][2](STATE, tmp_path))
    assert set(read_checkpoint(tmp_path / "m.mine")) == STATE.keys()
    assert set(read_checkpoint(tmp_path)) == STATE.keys()


@pytest.mark.parametrize(
    ("value", "says"),
    [("no format", "is a str"), (Format("npz"), "a format npz, and there is one already")],
    ids=["no-format", "name-in-use"],
)
def test_a_broken_entry_point_is_a_sentence(plug: Callable[[object], None], value: object, says: str) -> None:
    plug(value)
    with pytest.raises(SsmdiagError, match=says):
        known_formats()
