"""`ssmdiag retrain --resume`: goes on with the same run to the same bits, and refuses any other in a sentence."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]
GIVEN = "tests.retrain.given_models"
MODULE = ("--model", f"{GIVEN}:regressor", "--param", "own")
BUILT_IN = ("--width", 4, "--modes", 3, "--param", "exp")
TASK = ("--task", "lf-exp", "--length", 12, "--samples", 64)
SIZE = ("--steps", 4, "--batch", 8, "--no-plots", "--format", "json")

both = pytest.mark.parametrize("model", [MODULE, BUILT_IN], ids=["module", "built in"])


@pytest.fixture(autouse=True)
def handler_of_kill() -> Iterator[None]:
    """Put back what the command does with SIGTERM for as long as it runs."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def losses(output: str) -> list[Any]:
    return [arm["history"] for arm in json.loads(output)["arms"]]


OTHERWISE = {
    "task": (("--task", "lf-poly"), "--task lf-exp saved, lf-poly asked"),
    "length": (("--length", 13), "--length 12 saved, 13 asked"),
    "samples": (("--samples", 65), "other data"),
    "steps": (("--steps", 5), "--steps 4 saved, 5 asked"),
    "batch": (("--batch", 9), "--batch 8 saved, 9 asked"),
    "checkpoints": (("--checkpoint-every", 2), "--checkpoint-every none saved, 2 asked"),
    "lr": (("--lr", 0.5), "--lr 0.01 saved, 0.5 asked"),
    "seed": (("--seed", 7), "--seed 0 saved, 7 asked"),
    "freeze": (("--freeze", "eigenvalues"), "--freeze none saved, eigenvalues asked"),
    "recurrence lr": (("--recurrence-lr", 0.1), "--recurrence-lr none saved, 0.1 asked"),
    "weight decay": (("--weight-decay", 0.1), "--weight-decay 0 saved, 0.1 asked"),
}


@both
@pytest.mark.parametrize("what", OTHERWISE)
def test_a_run_with_another_setting_is_refused_by_name(
    model: tuple[object, ...], what: str, run: Run, tmp_path: Path
) -> None:
    given, says = OTHERWISE[what]
    folder = tmp_path / "run"
    code, _, errors = run("retrain", *model, *TASK, *SIZE, "--output", folder)
    assert code == 0, errors
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, output, errors = run("retrain", *model, *TASK, *SIZE, *given, "--output", folder, "--resume")
    assert (code, output) == (2, "")
    assert errors.startswith("ConfigurationError: --resume: ")
    assert says in errors
    assert "next: " in errors
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
