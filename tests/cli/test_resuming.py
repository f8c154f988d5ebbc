"""Lines of an earlier run, continued: the file equals that of a run that nothing stopped, wherever it was cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssmdiag.cli import diagnosing, resuming
from ssmdiag.cli.diagnosing import Options, exit_code
from ssmdiag.diagnosis import Diagnosis
from ssmdiag.errors import CheckpointError, Failure
from ssmdiag.reports import Settings, render
from tests.reports.example_diagnoses import CASES, diagnosis

Run = Callable[..., tuple[int, str, str]]
RESULTS = [CASES["findings"], diagnosis(), CASES["failed"], CASES["partly-read"], diagnosis()]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have results at once, by the number in a path's name; return the list of names that were begun."""
    names: list[str] = []

    def result_of(path: Path, options: Options, *, quiet: bool) -> Diagnosis | Failure:
        names.append(path.name)
        result = RESULTS[int(path.name) % len(RESULTS)]
        return replace(result, path=str(path), given=os.fspath(path), modified=diagnosing.modified(path))

    monkeypatch.setattr(diagnosing, "diagnose_path", result_of)
    return names


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "models"
    folder.mkdir()
    paths = [folder / str(number) for number in range(7)]
    for path in paths[:-1]:
        path.touch()
    return paths


@pytest.fixture
def resume(run: Run, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    def call(*arguments: object) -> tuple[int, str]:
        code, out, err = run("check", "--isolated", *arguments, "-f", "jsonl", "-o", tmp_path / "r", "--resume")
        assert out == ""
        return code, err

    return call


Resume = Callable[..., tuple[int, str]]


def cuts(content: bytes) -> Iterator[int]:
    """Yield where a kill may have ended the file: at each line, one byte before, just after, and within."""
    for end in [-1] + [position for position, byte in enumerate(content) if byte == 10]:
        yield from (cut for cut in (end, end + 1, end + 2, end + 20, end + 1500) if 0 <= cut <= len(content))


def test_a_file_cut_anywhere_is_completed_to_that_of_a_run_that_nothing_stopped(
    begun: list[str], resume: Resume, paths: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "r"
    assert resume(*paths)[0] == 2
    whole = file.read_bytes()
    assert begun == [path.name for path in paths]
    for cut in cuts(whole):
        file.write_bytes(whole[:cut])
        begun.clear()
        code, err = resume(*paths)
        assert (code, file.read_bytes() == whole) == (2, True)
        done = (whole[:cut] + b"\n").count(b"\n") - 1 + (whole[cut : cut + 1] == b"\n")
        assert begun == [path.name for path in paths[done:]]
        assert err.startswith("7 checkpoints: 2 with findings (error or worse), 2 not read, or not wholly, ")
        assert (f", {done} of them by an earlier run," in err) == (done > 0)


def test_a_run_without_resume_can_be_continued_and_the_same_path_twice_is_one(
    begun: list[str], run: Run, resume: Resume, paths: list[Path], tmp_path: Path
) -> None:
    assert run("check", "--isolated", *paths[:2], "-f", "jsonl", "-o", tmp_path / "r")[0] == 1
    assert resume(paths[4], paths[4], paths[1])[0] == 0
    given = [json.loads(line)["checkpoint"]["given"] for line in (tmp_path / "r").read_text().splitlines()]
    assert given == [str(paths[number]) for number in (0, 1, 4)]


def test_the_exit_code_is_that_of_all_and_of_no_others(begun: list[str], resume: Resume, paths: list[Path]) -> None:
    assert resume(*paths)[0] == 2
    assert resume(paths[0], paths[1])[0] == 1
    assert resume(paths[0], paths[1], "--fail-on", "error")[0] == 1
    assert resume(paths[1])[0] == 0
    assert len(begun) == len(paths)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fail_on", [None, "note", "warning", "error"])
def test_the_code_of_a_line_is_that_of_its_diagnosis(case: str, fail_on: str | None) -> None:
    row = json.loads(render([CASES[case]], "jsonl", Settings()))
    assert resuming._exit_code(row, fail_on) == exit_code(CASES[case], fail_on)


def test_errors_are_kept_until_asked_for(begun: list[str], resume: Resume, paths: list[Path], tmp_path: Path) -> None:
    resume(*paths)
    whole = (tmp_path / "r").read_text().splitlines()
    begun.clear()
    assert resume(*paths, "--retry-errors")[0] == 2
    assert begun == ["2", "3"]
    kept = [line for number, line in enumerate(whole) if number not in (2, 3)]
    assert (tmp_path / "r").read_text().splitlines() == [*kept, whole[2], whole[3]]


def test_what_was_modified_since_is_done_again_and_what_is_there_now(
    begun: list[str], resume: Resume, paths: list[Path], tmp_path: Path
) -> None:
    resume(*paths)
    begun.clear()
    os.utime(paths[1], (1, 1))
    paths[6].touch()
    resume(*paths)
    assert begun == ["1", "6"]
    given = [json.loads(line)["checkpoint"]["given"] for line in (tmp_path / "r").read_text().splitlines()]
    assert given == [str(paths[number]) for number in (0, 2, 3, 4, 5, 1, 6)]


def test_a_folder_is_modified_when_a_file_in_it_is(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    before = diagnosing.modified(tmp_path)
    file.write_bytes(b"more")
    os.utime(file, (2e9, 2e9))
    assert before != diagnosing.modified(tmp_path) == 2e9
    assert diagnosing.modified(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["--length", "512"], "length was null and is now 512"),
        (["--ignore", "SSM205"], 'ignore was [] and is now ["SSM205"]'),
        (["--every-channel"], "every_channel was false and is now true"),
        (["--assume", "real_transform=exp"], 'assume was {} and is now {"real_transform": "exp"}'),
        (["--map", "map.toml"], "map was null and is now "),
    ],
)
def test_other_settings_are_refused_and_the_file_stays(
    arguments: list[str], seen: str, begun: list[str], resume: Resume, paths: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("map.toml").write_text("")
    resume(*paths)
    before = (tmp_path / "r").read_bytes()
    code, err = resume(*paths, *arguments)
    assert code == 2
    assert "was begun with other settings: " + seen in err
    assert (tmp_path / "r").read_bytes() == before
    assert len(begun) == len(paths)


def test_lines_of_inspect_and_of_another_version_are_refused(
    begun: list[str], run: Run, resume: Resume, paths: list[Path], tmp_path: Path
) -> None:
    run("inspect", paths[1], "-f", "jsonl", "-o", tmp_path / "r")
    assert 'command was "inspect" and is now "check"' in resume(*paths)[1]
    (tmp_path / "r").unlink()
    resume(*paths)
    text = (tmp_path / "r").read_text()
    row = json.loads(text.splitlines()[0])
    (tmp_path / "r").write_text(json.dumps(row | {"settings": row["settings"] | {"ssmdiag_version": "0.0.1"}}) + "\n")
    assert 'ssmdiag_version was "0.0.1"' in resume(*paths)[1]


@pytest.mark.parametrize("line", ["{}", "[1]", "x", '{"checkpoint": 1}', '{"checkpoint": {}, "settings": null}'])
def test_other_lines_are_refused_by_their_number(line: str, begun: list[str], resume: Resume, paths: list[Path],
    tmp_path: Path) -> None:  # fmt: skip
    resume(*paths[:1])
    with (tmp_path / "r").open("a") as file:
        file.write(f"{line}\n")
    code, err = resume(*paths)
    assert code == 2
    assert "line 2 is no line of a run that can be continued" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["-f", "jsonl"],
        ["-f", "json", "-o", "r"],
        ["-f", "jsonl", "-o", "r", "--also", "json=s"],
        ["-f", "jsonl", "-o", "r", "--baseline", "b", "--write-baseline"],
        ["-f", "jsonl", "-o", "/dev/null"],
    ],
)
def test_what_cannot_be_continued_is_refused(
    arguments: list[str], begun: list[str], run: Run, paths: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    code, out, err = run("check", *paths, *arguments, "--resume")
    assert (code, out, begun) == (2, "", [])
    assert "--resume" in err


def test_retrying_needs_a_run_to_continue(begun: list[str], run: Run, paths: list[Path]) -> None:
    code, _, err = run("inspect", *paths, "--retry-errors")
    assert (code, begun) == (2, [])
    assert "add --resume" in err


def test_names_that_are_no_text_are_known_again(begun: list[str], resume: Resume, tmp_path: Path) -> None:
    folder = tmp_path / (os.fsdecode(b"\xff\xfe") + " \x1b[31m\u2028")
    folder.mkdir()
    for _ in range(2):
        assert resume(folder / "1")[0] == 0
    assert begun == ["1"]


def test_a_failure_says_what_was_given_and_when_it_was_modified(tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_bytes(b"no checkpoint")
    failure = diagnosing.diagnose_path(tmp_path / "m.pt", Options({}, None, "cpu"), quiet=True)
    assert isinstance(failure, Failure)
    assert failure.kind == CheckpointError.__name__
    row: dict[str, Any] = json.loads(render([failure], "jsonl", Settings()))
    assert row["checkpoint"] == {
        "path": str(tmp_path / "m.pt"), "given": str(tmp_path / "m.pt"),
        "modified": pytest.approx((tmp_path / "m.pt").stat().st_mtime, abs=1e-5),
    }  # fmt: skip
