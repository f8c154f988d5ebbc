"""Reports of many checkpoints: each is there before the next is begun, and together they are what one report is."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.cli import diagnosing, main
from ssmdiag.errors import AssumptionError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return four checkpoints, of which the second does not exist."""
    monkeypatch.chdir(tmp_path)
    state = {
        "layers.0.A_log": torch.zeros(4, 2),
        "layers.0.dt_proj.bias": torch.zeros(4),
        "layers.0.dt_proj.weight": torch.zeros(4, 1),
        "layers.0.x_proj.weight": torch.zeros(5, 4),
    }
    names = [Path(f"m{number}.safetensors") for number in range(4)]
    for name in (names[0], *names[2:]):
        save_file(state, name)
    return names


@dataclass
class Watched:
    """One run of the command."""

    code: int
    output: str
    states: list[dict[str, str]]
    """What stdout and the files held when each checkpoint was begun."""


Watch = Callable[..., Watched]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Run the command in this process, its stdout a stream that holds back what is not flushed."""

    def call(*arguments: object, work: Callable[..., object] = diagnosing.diagnose_path) -> Watched:
        raw = io.BytesIO()
        states: list[dict[str, str]] = []

        def noting(*arguments: object, **keywords: object) -> object:
            files = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.glob("out*")}
            states.append({"stdout": raw.getvalue().decode(), **files})
            return work(*arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(diagnosing, "diagnose_path", noting)
            patch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="utf-8"))
            patch.setattr(sys, "argv", ["ssmdiag", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
            return Watched(int(end.value.code or 0), raw.getvalue().decode(), states)

    return call


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_each_line_is_out_before_the_next_checkpoint_is_begun(command: str, paths: list[Path], watch: Watch) -> None:
    run = watch(command, *paths, "-f", "jsonl")
    assert run.code == 2
    assert [state["stdout"].count("\n") for state in run.states] == [0, 1, 2, 3]
    lines = [json.loads(line) for line in run.output.splitlines()]
    assert [line["checkpoint"]["path"] for line in lines] == [str(path) for path in paths]
    assert [line.get("error", {}).get("kind") for line in lines] == [None, "CheckpointError", None, None]


def test_lines_into_files_are_out_before_the_next_checkpoint_is_begun(paths: list[Path], watch: Watch) -> None:
    run = watch("check", *paths, "-f", "jsonl", "-o", "out", "--also", "jsonl=out2", "--also", "json=out3")
    assert run.code == 2
    assert [state.get("out", "").count("\n") for state in run.states] == [0, 1, 2, 3]
    assert [state.get("out2", "").count("\n") for state in run.states] == [0, 1, 2, 3]
    assert Path("out").read_text() == Path("out2").read_text()
    assert [json.loads(line) for line in Path("out").read_text().splitlines()] == json.loads(Path("out3").read_text())


def test_a_command_that_fails_keeps_the_lines_before(
    paths: list[Path], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = diagnosing.diagnose_path

    def failing(path: Path, *arguments: Any, **keywords: Any) -> object:
        if path == paths[2]:
            raise AssumptionError("planted")
        return plain(path, *arguments, **keywords)

    assert watch("check", *paths, "-f", "jsonl", "-o", "out", work=failing).code == 2
    assert len(Path("out").read_text().splitlines()) == 2
    assert "error: planted" in capsys.readouterr().err


def test_a_command_that_fails_at_once_leaves_the_file_alone(paths: list[Path], run: Run) -> None:
    Path("out").write_text("kept")
    assert run("inspect", *paths, "-f", "jsonl", "-o", "out", "--assume", "nonsense=1")[0] == 2
    assert Path("out").read_text() == "kept"


@pytest.mark.one_in(2)
@pytest.mark.parametrize("command", ["inspect", "check"])
def test_a_text_is_there_piece_by_piece_and_the_same_as_in_a_file(
    command: str, paths: list[Path], watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = watch(command, *paths)
    assert run.code == 2
    sizes = [len(state["stdout"]) for state in run.states]
    assert 0 == sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert capsys.readouterr().err.count("does not exist") == 1
    assert watch(command, *paths, "-o", "out").code == 2
    assert steady(Path("out").read_text(encoding="utf-8")) == steady(run.output)


def steady(text: str) -> str:
    """Return a report without its timings."""
    return "\n".join(line.partition(" cpu ")[0] for line in text.splitlines())


@pytest.mark.slow
def test_a_baseline_marks_what_streams(paths: list[Path], watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    good = [paths[0], *paths[2:]]
    write = watch("check", *good, "--baseline", "known.json", "--write-baseline", "-f", "jsonl", "-o", "out")
    first = [json.loads(line) for line in Path("out").read_text().splitlines()]
    read = watch("check", *good, "--baseline", "known.json", "-f", "jsonl", "--fail-on", "note", "-o", "out2")
    second = [json.loads(line) for line in Path("out2").read_text().splitlines()]
    assert (write.code, read.code) == (0, 0)
    assert [state.get("out2", "").count("\n") for state in read.states] == [0, 1, 2]
    assert first[0]["known_findings"], "the model has no finding for a baseline"
    known = [[{**finding, "baseline": None} for finding in line["known_findings"]] for line in (*first, *second)]
    assert known[:3] == known[3:]
    assert not any(line["findings"] for line in (*first, *second))
