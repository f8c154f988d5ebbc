"""Two ranks under torchrun train what one process trains; one voice; a rank that fails ends all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssmdiag.reports.retrain.json import document as as_document
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.distributed import ALONE, Ranks
from ssmdiag.retrain.sources import function_source
from ssmdiag.retrain.state_file import read_state
from ssmdiag.retrain.user_code import read_data
from tests.retrain.on_two_ranks import comparisons, losses
from tests.retrain.small import compare_modules

ROOT = Path(__file__).parents[2]
GIVEN = "tests.retrain.given_models"
LONGEST = 120
"""Seconds after which a launch is taken to hang."""
pytestmark = pytest.mark.usefixtures("heard_signals")
RETRAIN = ("-m", "ssmdiag", "retrain", "--data", f"{GIVEN}:pairs", "--no-plots", "--format", "json")


def on_two_ranks(*program: str, second: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program under torchrun; a run that hangs fails. What the second rank says goes to files under `second`."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += [] if second is None else ["--log-dir", str(second), "--redirects", "1:3"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "80", **environment}
    with subprocess.Popen(
        [*launch, *program], cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            output, errors = run.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            run.terminate()  # torchrun then ends its ranks; killed, it would leave them
            output, errors = run.communicate()
            raise AssertionError(f"still running after {LONGEST} s:\n{output}\n{errors}") from None
    return subprocess.CompletedProcess(launch, run.returncode, output, errors)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("ranks")
    run = on_two_ranks("-m", "tests.retrain.on_two_ranks", str(folder))
    assert run.returncode == 0, run.stderr
    first, second = (json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: losses(result) for name, result in comparisons(ALONE, folder).items()}, folder


KINDS = ("built in", "built in, spread", "holes", "given, spread")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_have_the_losses_of_one_process(kind: str, together: Any, alone: Any) -> None:
    ranks, one = together[0]["results"][kind], alone[0][kind]
    assert [arm["arm"] for arm in ranks] == [arm["arm"] for arm in one]
    for both, single in zip(ranks, one, strict=True):
        assert both["history"] == pytest.approx(single["history"], rel=2e-5)
        assert both["diverged_at"] == single["diverged_at"]
        assert both["checkpoints"] == single["checkpoints"]
        assert both["after"] == pytest.approx(single["after"], rel=1e-3)


@pytest.mark.slow
def test_two_ranks_leave_the_weights_of_one_process(together: Any, alone: Any) -> None:
    here, there = alone[1], together[2]
    files = sorted(path.relative_to(here) for path in here.rglob("step-*.safetensors"))
    assert files
    for file in files:
        mine, theirs = load_file(here / file), load_file(there / file)
        for name, value in mine.items():
            torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=2e-5, msg=f"{file} {name}")


@pytest.mark.slow
def test_a_diverged_arm_is_one_on_all_ranks(together: Any) -> None:
    assert [arm["diverged_at"] is None for arm in together[0]["results"]["built in, spread"]] == [True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["built in, spread", "given, spread"])
def test_every_rank_has_all_results_in_the_order_of_the_arms(kind: str, together: Any) -> None:
    assert together[0]["results"][kind] == together[1]["results"][kind]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_one_step_and_leaves_a_state(together: Any) -> None:
    assert together[0]["stopped"] == [True, True]
    (state,) = (together[2] / "interrupted").glob("state-*.state")
    assert read_state(state)["run"]["step"] == 3


@pytest.mark.slow
def test_a_run_of_two_ranks_that_goes_on_in_one_process_says_so(together: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(together[2] / "interrupted", tmp_path / "run")
    result = compare_modules(
        [Arm(OWN)], function_source(f"{GIVEN}:regressor"), read_data(f"{GIVEN}:pairs", 8), Budget(6, 8, 2),
        task="t", folder=folder, resume=True,
    )  # fmt: skip
    assert any(note.startswith("trained on 2 ranks on cpu, then on cpu: ") for note in result.notes)


@pytest.mark.slow
def test_the_command_speaks_with_one_voice_and_ends_where_one_process_ends(tmp_path: Path) -> None:
    options = ("--model", f"{GIVEN}:regressor", "--param", "own", "--steps", "4", "--batch", "7", "--lr", "0.05")
    run = on_two_ranks(*RETRAIN, *options, "--output", str(tmp_path), second=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    assert [file.read_text() for file in (tmp_path / "log").rglob("1/std*.log")] == ["", ""]
    # On a machine so busy that the four steps last, the first rank says how far it is.
    assert all(re.match(r"step \d of 4", line) for line in run.stderr.splitlines()), run.stderr
    (ours,) = json.loads(run.stdout)["arms"]
    budget = Budget(4, 7, validate_every=1)
    single = compare_modules(
        [Arm(OWN, lr=0.05)], function_source(f"{GIVEN}:regressor"), read_data(f"{GIVEN}:pairs", 7), budget, task="t"
    )
    (expected,) = as_document(single)["arms"]
    assert [point["loss"] for point in ours["history"]] == pytest.approx(
        [point["loss"] for point in expected["history"]], rel=2e-5
    )
    assert ours["memory"]["before"] == expected["memory"]["before"]
    assert ours["checkpoint"] == str(tmp_path / "own-lr0.05-seed0" / "step-4.safetensors")


@pytest.mark.slow
def test_a_rank_that_fails_ends_all_with_its_own_message() -> None:
    start = time.monotonic()
    run = on_two_ranks(*RETRAIN, "--model", "tests.retrain.on_one_rank:build", "--param", "own", "--steps", "500")
    assert run.returncode != 0
    assert time.monotonic() - start < 60
    assert run.stdout == ""
    assert run.stderr.count("error: --model") == 1
    assert "raised ValueError at tests/retrain/on_one_rank.py, line 12: rank 1 has no such file" in run.stderr
    # torchrun has a traceback of its own; the ranks have none.
    assert 'on_one_rank.py", line' not in run.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_of_a_batch_are_the_batch_in_order(size: int, count: int) -> None:
    parts = [list(range(size))[Ranks(rank, count).part(size)] for rank in range(count)]
    assert [sample for part in parts for sample in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_shares_of_the_arms_are_all_arms() -> None:
    shares = [Ranks(rank, 3).share("abcdefgh") for rank in range(3)]
    assert sorted(arm for share in shares for arm in share) == list("abcdefgh")
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [Ranks(0, 2).spreads(arms) for arms in ("ab", "abc")] == [False, True]
    assert not ALONE.spreads("abc")
