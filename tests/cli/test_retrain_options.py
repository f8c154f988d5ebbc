"""`ssmdiag retrain`: an option that is ignored, and a value no run can have, is refused before training."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str, str]]
GIVEN = "tests.retrain.given_models"
MODEL = ("--model", f"{GIVEN}:regressor")
PAIRS = ("--data", f"{GIVEN}:pairs")
SMALL = ("--steps", 1, "--no-plots", "--quiet")


IGNORED = {
    "together": ((*MODEL, *PAIRS, "--together", 3), "models of your own are trained one after another"),
    "width": ((*MODEL, *PAIRS, "--width", 3), "sets the model and its sizes"),
    "task": ((*MODEL, *PAIRS, "--task", "lf-exp"), "pairs returns its own sequences"),
    "length": ((*MODEL, *PAIRS, "--length", 5), "returns its own sequences"),
    "samples": ((*MODEL, *PAIRS, "--samples", 5), "returns its own sequences"),
    "batch": ((*MODEL, "--data", f"{GIVEN}:loaders", "--batch", 5), "loaders makes batches of its own"),
    "text": ((*MODEL, *PAIRS, "--text", "corpus.txt"), "returns its own sequences"),
    "assume": (("--assume", "real_transform=exp"), "the built-in model is known"),
    "data": (("--text", "corpus.txt", "--data", "own.npz"), "the model learns corpus.txt already"),
    "checkpoint-every": (("--checkpoint-every", 2), "nothing is kept without --output"),
    "model": (("tiny", "--text", "corpus.txt", "--model", "s4d"), "tiny sets the model and its sizes"),
    "task ": (("tiny", "--text", "corpus.txt", "--task", "delay"), "tiny learns the next token of a text"),
    "data ": (("tiny", "--text", "corpus.txt", "--data", "own.npz"), "tiny learns the next token of a text"),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("option", IGNORED)
def test_an_option_that_is_ignored_is_refused(
    option: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "corpus.txt").write_text("to be or not to be")
    monkeypatch.chdir(tmp_path)
    arguments, why = IGNORED[option]
    code, output, errors = run("retrain", *arguments, *SMALL)
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: --{option.strip()}: ")
    assert why in errors
    assert "next: " in errors


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lr", "0"), "--lr 0.0: no optimiser can use it"),
        (("--lr", "nan"), "--lr nan"),
        (("--lr", "inf"), "--lr inf"),
        (("--lr", "1e400"), "--lr inf"),
        (("--lr", "-1"), "--lr -1.0"),
        (("--lr", "1e-300"), "--lr 1e-300"),
        (("--lr", "0.1", "--lr", "1e-1"), "--lr 0.1 is given twice"),
        (("--seed", "3", "--seed", "3"), "--seed 3 is given twice"),
        (("--seed", "1" * 30), "no such seed"),
        (("--seed", "1" * 5000), "exceeded maximum size"),
        (("--steps", "-1"), "--steps"),
        (("--batch", "0"), "--batch"),
        (("--length", "1"), "--length"),
        (("--length", "0"), "--length"),
        (("--together", "0"), "--together"),
        (("--param", "best(b=nan)"), "b=nan"),
        (("--param", "best(b=-1)"), "b=-1"),
        (("--param", "own"), "own"),
        (("--steps", 10**12), "--steps 1,000,000,000,000: too many.\n  expected: 1,000,000,000 at most"),
        (("--batch", 10**12), "--batch 1,000,000,000,000: too many"),
        (("--together", 10**12), "--together 1,000,000,000,000: too many"),
        (("--width", 10**6), "--width 1,000,000 --modes 32 --depth 1: 1,000,032,000,000 weights."),
        (("--modes", 10**9), "--width 64 --modes 1,000,000,000 --depth 1: 64,000,004,096 weights."),
        (("--depth", 10**7), "--width 64 --modes 32 --depth 10,000,000: 61,440,000,000 weights."),
        (("--text", "pipe"), "--text pipe: cannot be read (it is a pipe or a device, not a file)"),
        (("--text", "/dev/zero"), "--text /dev/zero: cannot be read (it is a pipe or a device, not a file)"),
        (("--text", "-"), "--text -: cannot be read (No such file or directory).\n  expected: a regular file"),
        (("--resume",), "--resume: there is nothing to resume from"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused(
    arguments: tuple[object, ...], says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    code, output, errors = run("retrain", *SMALL, *arguments)
    assert (code, output) == (2, "")
    assert says in errors
    assert "Traceback" not in errors


@pytest.mark.one_in(4)
@pytest.mark.parametrize("arguments", [("--steps", 0), ("--length", 2), ("--batch", 10**9), ("--recurrence-lr", 0)])
def test_a_value_at_its_limit_trains(arguments: tuple[object, ...], run: Run) -> None:
    sizes = ("--width", 2, "--modes", 2, "--samples", 8, "--length", 6, "--together", 10**9)
    code, output, errors = run("retrain", *sizes, *SMALL, *arguments)
    assert (code, errors) == (0, "")
    assert "lf-poly" in output


def test_together_of_one_is_what_models_that_are_given_do(run: Run) -> None:
    code, _, errors = run("retrain", *MODEL, *PAIRS, "--together", 1, "--param", "own", *SMALL)
    assert (code, errors) == (0, "")


def test_batches_of_the_users_own_are_reported_with_their_size(run: Run) -> None:
    code, output, _ = run("retrain", *MODEL, "--data", f"{GIVEN}:loaders", "--param", "own", *SMALL)
    assert code == 0
    assert "1 step × 8 " in output
