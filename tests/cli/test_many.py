"""Real processes on real files: one that is killed, a run that is killed and resumed, what stays in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssmdiag.cli import diagnosing
from ssmdiag.cli.diagnosing import Options
from ssmdiag.cli.diagnosing import _diagnose_apart as diagnose_apart
from ssmdiag.errors import Failure
from tests.benchmarks.many_files_speed import follow, members

COMMAND = [sys.executable, "-m", "ssmdiag"]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def write_models(folder: Path, count: int) -> list[Path]:
    """Write small Mambas, of which every fifth is torn."""
    paths = []
    for number in range(count):
        state = {
            "layers.0.A_log": torch.arange(1, 3).float().log().repeat(2, 1) + 0.01 * (number % 100),
            "layers.0.dt_proj.bias": torch.full((2,), -4.0),
            "layers.0.dt_proj.weight": torch.ones(2, 1),
            "layers.0.x_proj.weight": torch.ones(5, 2),
        }
        paths.append(folder / f"{number:04d}.safetensors")
        save_file(state, paths[-1])
        if number % 5 == 3:
            paths[-1].write_bytes(paths[-1].read_bytes()[:-1])
    return paths


def rows(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file without their timings."""
    return [{**json.loads(line), "seconds": 0} for line in file.read_text().splitlines()]


def write_list(folder: Path, paths: list[Path]) -> str:
    (folder / "list").write_text("".join(f"{path}\n" for path in paths))
    return f"@{folder / 'list'}"


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    run = [*COMMAND, *map(str, arguments)]
    return subprocess.run(run, capture_output=True, text=True, timeout=600, check=False, **options)


@pytest.mark.slow
def test_many_processes_and_shards_write_the_lines_of_one(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 11)
    asked = ["inspect", write_list(tmp_path, paths), "-f", "jsonl", "-o"]
    assert command(*asked, tmp_path / "one").returncode == 2
    two = command(*asked, tmp_path / "two", "--jobs", 2)
    assert (two.returncode, two.stdout) == (2, "")
    assert two.stderr.startswith("11 checkpoints: 2 not read, or not wholly, ")
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert [row["checkpoint"]["given"] for row in rows(tmp_path / "one")] == [str(path) for path in paths]
    for number in (1, 2, 3):
        command(*asked, tmp_path / "three", "--shard", f"{number}/3", "--jobs", "auto")
    by_path = sorted(rows(tmp_path / "three"), key=lambda row: str(row["checkpoint"]["given"]))
    assert by_path == rows(tmp_path / "one")


def killed_or_crashed(options: Options, path: Path) -> object:
    """Diagnose, but for one path that kills the process and one on which ssmdiag crashes."""
    if path.name == "0001.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
    return diagnose_apart(options, path)


def crashing(path: Path, options: Options, **keywords: object) -> object:
    raise MemoryError("planted")


def test_a_checkpoint_that_kills_its_process_costs_itself_alone(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosing, "_diagnose_apart", killed_or_crashed)
    paths = write_models(tmp_path, 3)
    asked = ["check", *paths, "--isolated", "-f", "jsonl", "-o", tmp_path / "r", "--jobs", 1, "--resume"]
    for times in range(2):
        code, out, err = run(*asked)
        assert (code, out) == (2, "")
        assert err.startswith("3 checkpoints: 0 with findings (error or worse), 1 not read, or not wholly, ")
        assert ("3 of them by an earlier run" in err) == (times > 0)
    good, killed, after = rows(tmp_path / "r")
    assert (len(good["layers"]), len(after["layers"])) == (1, 1)
    assert killed["error"]["seen"] == "0001.safetensors: the process that read it was killed by signal 9."
    assert killed["checkpoint"]["modified"] == diagnosing.modified(paths[1])


def test_a_checkpoint_on_which_ssmdiag_crashes_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diagnosing, "diagnose_path", crashing)
    failure = diagnose_apart(Options({}, None, "cpu"), tmp_path / "m.pt")
    assert isinstance(failure, Failure)
    assert failure.seen == "m.pt: ssmdiag crashed, MemoryError: planted"


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_lines_of_one_that_was_not(tmp_path: Path) -> None:
    paths = write_models(tmp_path, 12)
    asked = ["inspect", write_list(tmp_path, paths), "-f", "jsonl", "--jobs", "2", "-o"]
    assert command(*asked, tmp_path / "whole").returncode == 2
    file = tmp_path / "r"
    for wanted in (0, 1, 5, 9):
        with subprocess.Popen([*COMMAND, *asked, str(file), "--resume"], start_new_session=True) as process:
            deadline = time.monotonic() + 120
            while lines_in(file) < wanted and time.monotonic() < deadline:
                time.sleep(0.005)
            before = members(process.pid)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 60
        while members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not members(process.pid), f"of {before} some do not end with the command"
    left = command(*asked, file, "--resume")
    assert left.returncode == 2
    assert rows(file) == rows(tmp_path / "whole")
    assert "of them by an earlier run" in left.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_leaves_whole_lines(number: signal.Signals, tmp_path: Path) -> None:
    paths = write_models(tmp_path, 200)
    file = tmp_path / "r"
    asked = ["inspect", write_list(tmp_path, paths), "-f", "jsonl", "--jobs", "2", "-o", str(file)]
    with subprocess.Popen([*COMMAND, *asked], start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        while lines_in(file) < 3 and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    deadline = time.monotonic() + 10
    while members(process.pid) and time.monotonic() < deadline:  # one may still be giving its memory back
        time.sleep(0.05)
    assert not members(process.pid)
    assert file.read_bytes().endswith(b"\n")
    assert 3 <= len(rows(file)) < 200


@pytest.mark.slow
def test_a_thousand_checkpoints_need_no_more_memory_than_a_hundred(tmp_path: Path) -> None:
    run = follow(
        [*COMMAND, "check", write_list(tmp_path, write_models(tmp_path, 1000)), "--isolated", "--jobs", "2"], tmp_path
    )
    assert run.code == 2
    assert run.lines == 1000
    assert run.growth("command") < 8
    assert run.growth("workers") < 8
