"""Lists of paths in files, shares of a job array, how many processes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmdiag.cli import path_list
from ssmdiag.cli.path_list import Shard, expand, parse_jobs, parse_shard
from ssmdiag.errors import SsmdiagError

Run = Callable[..., tuple[int, str, str]]


@given(st.integers(1, 40), st.integers(0, 100))
def test_every_path_is_in_exactly_one_shard_and_shards_differ_by_one_at_most(count: int, paths: int) -> None:
    numbered = list(range(paths))
    shards = [parse_shard(f"{number}/{count}").take(numbered) for number in range(1, count + 1)]
    assert sorted(one for shard in shards for one in shard) == numbered
    assert all(shard == sorted(shard) for shard in shards)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "text", ["3/2", "0/2", "1/0", "-1/2", "1", "a/b", "1/2/3", "1.5/2", "1 /2", "²/3", "1/" + "9" * 99]
)
def test_other_shards_are_refused(text: str, run: Run) -> None:
    code, out, err = run("check", "m", "--shard", text)
    assert (code, out) == (2, "")
    assert "is no shard; expected i/n with 1 <= i <= n" in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("text", ["-1", "two", "1.5", "", "99999", "²"])
def test_other_numbers_of_processes_are_refused(text: str, run: Run) -> None:
    code, out, err = run("inspect", "m", "--jobs", text)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_auto_and_zero_are_one_process_for_each_core() -> None:
    assert parse_jobs("auto") == parse_jobs("0") == path_list.cores() >= 1
    assert parse_jobs("3") == 3


def test_a_list_stands_for_its_lines_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("l").write_bytes(b"\xef\xbb\xbfb c\r\n\n  \n@d\n e\n\xff.pt")  # a byte order mark, Windows' ends, no last end
    inside = [Path("b c"), Path("@d"), Path(" e"), Path(os.fsdecode(b"\xff.pt"))]
    paths, lists = expand([Path("a"), Path("@l"), Path("/@z")])
    assert paths == [Path("a"), *inside, Path("/@z")]
    assert lists == [Path("l")]


def test_a_list_may_come_through_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert expand([Path("@-")]) == ([Path("a"), Path("b")], [])


@pytest.mark.parametrize(
    ("content", "seen"),
    [(None, "No such file"), (b"", "no path is in it"), (b"\n\n", "no path is in it"), (b"PK\0\0", "bytes of value 0")],
)
def test_what_is_no_list_is_refused(content: bytes | None, seen: str, tmp_path: Path) -> None:
    file = tmp_path / "l"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SsmdiagError, match=seen):
        expand([Path(f"@{file}")])


def test_a_list_that_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_list, "MOST_LIST", 1000)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n" * 501)))
    with pytest.raises(SsmdiagError, match="more than 1,000 bytes"):
        expand([Path("@-")])


def test_a_list_is_not_written_over(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "l"
    file.write_text("m.safetensors\n")
    code, out, err = run("inspect", f"@{file}", "-o", file)
    assert (code, out) == (2, "")
    assert err.startswith("error: --output")
    assert file.read_text() == "m.safetensors\n"


@pytest.mark.parametrize("format", ["text", "jsonl", "json", "sarif", "junit", "markdown"])
def test_a_shard_without_a_path_is_clean_and_its_file_is_there(format: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "r"
    code, out, err = run("check", tmp_path / "m", "--shard", "2/2", "-f", format, "-o", file)
    assert (code, out) == (0, "")
    assert err.startswith("0 checkpoints: 0 with findings (error or worse), 0 not read, or not wholly, ")
    assert file.exists()
    assert Shard(2, 2).take(["m"]) == []
