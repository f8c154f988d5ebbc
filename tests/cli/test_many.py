"""Real processes on real files: one that is killed, a run that is killed and resumed, what stays in memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

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


KILLER = """
import os, signal, sys
import ssmdiag.diagnosis
whole = ssmdiag.diagnosis.diagnose
def diagnose(checkpoint, **options):
    name = checkpoint.path.name
    if name == "0001.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "0002.safetensors":
        raise MemoryError("planted")
    return whole(checkpoint, **options)
ssmdiag.diagnosis.diagnose = diagnose
"""
"""A site-customisation: in every process one checkpoint kills it and another crashes it."""


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_checkpoint_that_kills_its_process_costs_itself_alone(jobs: int, tmp_path: Path) -> None:
    paths = write_models(tmp_path, 5)
    (tmp_path / "planted.py").write_text(KILLER)
    (tmp_path / "models").mkdir()
    file = tmp_path / "r.jsonl"
    starter = "import sys, planted; from ssmdiag.cli import run; run()"
    asked = ["check", *map(str, paths), "--isolated", "-f", "jsonl", "-o", str(file), "--resume", "--jobs", str(jobs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    (tmp_path / "sitecustomize.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", starter, *asked], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
