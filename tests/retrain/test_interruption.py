"""The installed command, killed and interrupted: nothing that was saved is lost, and what is known is said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ssmdiag.retrain.state_file import read_state

ROOT = Path(__file__).parents[2]
COMMAND = (str(Path(sysconfig.get_path("scripts")) / "ssmdiag"),)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "ssmdiag")
LONGEST = 300
"""Seconds after which a run is taken to hang."""
pytestmark = pytest.mark.usefixtures("heard_signals")
DATA = ("--data", "tests.retrain.killed_models:data")
MODULE = ("--model", "tests.retrain.killed_models:model", "--param", "own")
MODELS = {"module": MODULE, "built in": ("--width", "3", "--modes", "2", "--param", "exp")}
EVERY = 8
"""Steps between validations of 160 steps."""
SIZE = ("--steps", "160", "--batch", "8", "--no-plots", "--quiet", "--format", "json")


def retrain(
    *options: object, launch: tuple[str, ...] = COMMAND, **environment: object
) -> subprocess.CompletedProcess[str]:
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    own = {name: str(value) for name, value in environment.items()}
    arguments = [*launch, "retrain", *map(str, options)]
    return subprocess.run(
        arguments, env={**os.environ, **settings, **own}, capture_output=True, text=True, timeout=LONGEST, cwd=ROOT
    )


def arms_of(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return json.loads(run.stdout)["arms"]


def saved_step(folder: Path) -> int:
    (state,) = folder.glob("state-*.state")
    return int(read_state(state)["run"]["step"])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*/step-*")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[Any], dict[str, bytes]]]:
    """Return the history and the checkpoints of a run that nothing interrupts."""

    @cache
    def train(model: str) -> tuple[list[Any], dict[str, bytes]]:
        folder = tmp_path_factory.mktemp("whole")
        (arm,) = arms_of(retrain(*MODELS[model], *DATA, *SIZE, "--output", folder))
        return arm["history"], files(folder)

    return train


def require_same(
    whole: tuple[list[Any], dict[str, bytes]], run: subprocess.CompletedProcess[str], folder: Path
) -> None:
    assert run.returncode == 0, run.stderr
    (arm,) = arms_of(run)
    assert arm["history"] == whole[0]
    assert files(folder) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", [155, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 1, 7, 8, 9, 80, 159))]
)
def test_a_module_that_is_killed_at_a_step_loses_one_validation_interval_at_most(
    step: int, whole: Any, tmp_path: Path
) -> None:
    options = (*MODULE, *DATA, *SIZE, "--output", tmp_path)
    killed = retrain(*options, SIGNAL=signal.SIGKILL.value, AT_STEP=step)
    assert killed.returncode == -signal.SIGKILL
    assert step - EVERY < saved_step(tmp_path) <= step
    require_same(whole("module"), retrain(*options, "--resume"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("write", [0, 1, 2, 3, 4, 5, 6, 12, 20, 24])
@pytest.mark.parametrize("model", ["module", "built in"])
def test_a_kill_while_a_file_is_written_leaves_the_one_before(
    model: str, write: int, whole: Any, tmp_path: Path
) -> None:
    options = (*MODELS[model], *DATA, *SIZE, "--output", tmp_path)
    killed = retrain(*options, SIGNAL=signal.SIGKILL.value, AT_WRITE=write)
    assert killed.returncode == -signal.SIGKILL
    # A state, config.json, the first checkpoint, then a state at every validation; a checkpoint before the last one.
    if write > 0:
        assert saved_step(tmp_path) == EVERY * max(min(write, 23) - 4, 0)
    require_same(whole(model), retrain(*options, "--resume"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.slow, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="kill")],
)
def test_what_is_known_is_said_where_nothing_is_kept(number: signal.Signals) -> None:
    arms = ("--lr", "0.01", "--lr", "0.02")
    run = retrain(*MODULE, *DATA, *SIZE, *arms, SIGNAL=number.value, AT_STEP=180)
    assert run.returncode == 128 + number
    assert run.stderr.splitlines() == [
        "stopped; nothing was kept: with --output DIR the same command and --resume would go on from here"
    ]
    document = json.loads(run.stdout)
    assert document["interrupted_at"] == 21
    first, second = document["arms"]
    assert first["interrupted_at"] is None
    assert first["final_loss"] == first["history"][-1]["loss"]
    assert first["memory"]["after"]
    assert (second["interrupted_at"], second["final_loss"]) == (21, None)
    assert [point["step"] for point in second["history"]] == [0, 8, 16]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interruption_says_how_to_go_on_and_that_goes_on_to_the_same_bits(
    number: signal.Signals, whole: Any, tmp_path: Path
) -> None:
    options = (*MODULE, *DATA, *SIZE, "--output", tmp_path)
    run = retrain(*options, SIGNAL=number.value, AT_STEP=60)
    assert run.returncode == 128 + number
    assert run.stderr.splitlines() == [f"stopped; the same command with --resume goes on from {tmp_path}"]
    assert [point["step"] for point in arms_of(run)[0]["history"]] == list(range(0, 61, EVERY))
    assert saved_step(tmp_path) == 61
    require_same(whole("module"), retrain(*options, "--resume"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arms", [(0,), (0, 1, 2)], ids=["one", "spread"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_two_ranks_that_are_interrupted_say_what_is_known_once(
    number: signal.Signals, arms: tuple[int, ...], tmp_path: Path
) -> None:
    seeds = [part for seed in arms for part in ("--seed", seed)]
    options = (*MODULE, *DATA, *SIZE, *seeds, "--output", tmp_path)
    run = retrain(*options, launch=TORCHRUN, SIGNAL=number.value, AT_STEP=60, TO="parent")
    assert run.returncode != 0
    assert run.stdout, run.stderr
    document = json.loads(run.stdout)
    assert document["interrupted_at"] >= 61
    assert document["arms"][0]["history"][-1]["step"] >= 56
    assert run.stderr.count("stopped; the same command with --resume goes on from") == 1
    assert "ssmdiag/cli" not in run.stderr  # torchrun has a traceback of its own; the ranks have none
    resumed = retrain(*options, "--resume", launch=TORCHRUN)
    assert resumed.returncode == 0, resumed.stderr
    assert all(arm["history"][-1]["step"] == 160 for arm in arms_of(resumed))
