"""`ssmdiag retrain` with a model that is given: a function's, a directory of transformers, a checkpoint of a run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmdiag.cli import terminal
from tests.families.tiny_transformers import tiny_model

Run = Callable[..., tuple[int, str, str]]
GIVEN = "tests.retrain.given_models"
QUICK = ("--steps", 2, "--no-plots", "--format", "json")
SMALL = (*QUICK, "--batch", 4)


def arms_of(output: str) -> list[dict[str, Any]]:
    return json.loads(output)["arms"]


@pytest.mark.slow
def test_a_single_map_is_compared_with_the_models_own(run: Run) -> None:
    code, output, _ = run(
        "retrain", "--model", f"{GIVEN}:regressor", "--data", f"{GIVEN}:loaders", "--param", "best(b=0.05)", *QUICK
    )
    assert code == 0
    assert [arm["param"] for arm in arms_of(output)] == ["own", "best(b=0.05)"]
    document = json.loads(output)
    assert (document["task"], document["context_length"]) == (f"{GIVEN}:loaders", 12)
    assert all(arm["memory"]["before"] and arm["memory"]["after"] for arm in arms_of(output))


def test_a_directory_learns_a_text_and_leaves_checkpoints_for_inspect(run: Run, tmp_path: Path) -> None:
    tiny_model("mamba", vocab_size=128).float().save_pretrained(tmp_path / "tiny")
    (tmp_path / "corpus.txt").write_text("to be or not to be " * 20)
    options = ("--text", tmp_path / "corpus.txt", "--length", 8, "--param", "own", "--output", tmp_path / "run")
    code, output, _ = run("retrain", tmp_path / "tiny", *options, *SMALL)
    assert code == 0
    assert json.loads(output)["task"] == "next byte of corpus.txt"
    (arm,) = arms_of(output)
    code, report, _ = run("inspect", arm["checkpoint"], "--format", "json")
    assert code == 0
    assert "mamba" in report


@pytest.mark.slow
def test_a_checkpoint_is_gone_on_from_with_its_sizes_and_loss(run: Run, tmp_path: Path) -> None:
    task = ("--task", "lf-exp", "--length", 10, "--samples", 16)
    sizes = ("--width", 3, "--modes", 2)
    _, output, _ = run("retrain", *task, *sizes, "--param", "exp", *SMALL, "--output", tmp_path)
    (first,) = arms_of(output)
    code, output, _ = run("retrain", first["checkpoint"], *task, "--param", "softplus", *SMALL)
    assert code == 0
    arms = arms_of(output)
    assert [arm["param"] for arm in arms] == ["exp", "softplus"]
    assert "width 3, 2 modes" in json.loads(output)["model"]
    assert [arm["history"][0]["loss"] for arm in arms] == pytest.approx([first["final_loss"]] * 2, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "no_such_module:make"), "error: --model no_such_module:make: there is no module"),
        (("--model", f"{GIVEN}:regressor", "--data", f"{GIVEN}:regressor"), "error: --data"),
        (
            ("--model", f"{GIVEN}:regressor", "--data", f"{GIVEN}:pairs", "--param", "best(b=90)"),
            "error: best(b=90), f(w) = 1/(w² + 90), cannot hold the rates",
        ),
        (
            ("--model", f"{GIVEN}:regressor", "--data", f"{GIVEN}:pairs", "--init", "long"),
            "error: --init long",
        ),
        (("--data", f"{GIVEN}:pairs"), "error: --data tests.retrain.given_models:pairs: returned tuple"),
        (("no-such-file.safetensors",), "error: no-such-file.safetensors does not exist"),
    ],
)
def test_what_cannot_be_trained_exits_with_2_and_one_message(
    arguments: tuple[str, ...], message: str, run: Run
) -> None:
    code, output, errors = run("retrain", *arguments, *SMALL)
    assert (code, output) == (2, "")
    assert errors.startswith(message)
    assert "Traceback" not in errors


def test_a_directory_without_a_text_says_what_to_give(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    code, _, errors = run("retrain", tmp_path, *SMALL)
    assert code == 2
    assert "expected: --text FILE, or --data package.module:function" in errors


@pytest.mark.slow
def test_a_saved_step_of_a_directory_is_gone_on_from(run: Run, tmp_path: Path) -> None:
    tiny_model("mamba", vocab_size=128).float().save_pretrained(tmp_path / "tiny")
    (tmp_path / "corpus.txt").write_text("to be or not to be " * 20)
    options = ("--text", tmp_path / "corpus.txt", "--length", 8, "--param", "own", *SMALL)
    _, output, _ = run("retrain", tmp_path / "tiny", *options, "--output", tmp_path / "run")
    (first,) = arms_of(output)
    code, output, _ = run("retrain", first["checkpoint"], *options)
    assert code == 0
    assert arms_of(output)[0]["history"][0]["loss"] == pytest.approx(first["final_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_saved_step_of_a_function_asks_for_the_function(run: Run, tmp_path: Path) -> None:
    given = ("--model", f"{GIVEN}:regressor", "--data", f"{GIVEN}:pairs", "--param", "own", *SMALL)
    _, output, _ = run("retrain", *given, "--output", tmp_path)
    (first,) = arms_of(output)
    code, _, errors = run("retrain", first["checkpoint"], *SMALL)
    assert code == 2
    assert "a checkpoint of a model of your own" in errors
    assert "--model package.module:function" in errors
    code, output, _ = run("retrain", first["checkpoint"], *given)
    assert arms_of(output)[0]["history"][0]["loss"] == pytest.approx(first["final_loss"], rel=1e-5)


@pytest.mark.slow
def test_a_text_that_is_given_is_what_is_learned(run: Run, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("to be or not to be " * 40)
    sizes = ("--width", 3, "--modes", 2, "--length", 8)
    code, output, _ = run("retrain", "--text", tmp_path / "corpus.txt", *sizes, *SMALL)
    assert (code, json.loads(output)["task"]) == (0, "text")


def test_arrays_that_are_given_are_what_is_learned(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.zeros((6, 5, 1), np.float32), y=np.ones((6, 5, 1), np.float32))
    code, output, _ = run("retrain", "--data", tmp_path / "own.npz", "--width", 3, "--modes", 2, *SMALL)
    assert (code, json.loads(output)["task"]) == (0, "arrays")
    code, _, errors = run("retrain", "--task", "delay", "--data", tmp_path / "own.npz", *SMALL)
    assert code == 2
    assert "--task delay reads no file, and own.npz would not be used" in errors


@pytest.mark.slow
def test_without_a_map_a_given_model_gets_one_that_holds_its_rates(run: Run, tmp_path: Path) -> None:
    tiny_model("mamba", vocab_size=128).float().save_pretrained(tmp_path / "tiny")
    (tmp_path / "corpus.txt").write_text("to be or not to be " * 20)
    code, output, _ = run("retrain", tmp_path / "tiny", "--text", tmp_path / "corpus.txt", "--length", 8, *SMALL)
    assert code == 0
    assert [arm["param"] for arm in arms_of(output)] == ["own", "heavy-tail"]


@pytest.mark.slow
def test_sizes_of_a_checkpoint_cannot_be_asked_for_and_it_is_compared_with_another_map(
    run: Run, tmp_path: Path
) -> None:
    task = ("--task", "lf-exp", "--length", 10, "--samples", 16)
    _, output, _ = run("retrain", *task, "--width", 3, "--modes", 2, "--param", "best", *SMALL, "--output", tmp_path)
    saved = arms_of(output)[-1]["checkpoint"]
    assert arms_of(output)[-1]["param"].startswith("best")
    code, output, _ = run("retrain", saved, *task, *SMALL)
    assert code == 0
    assert sorted(arm["param"] for arm in arms_of(output)) == ["best", "exp"]
    for option in (("--width", 4), ("--model", "lru")):
        code, _, errors = run("retrain", saved, *task, *option, *SMALL)
        assert code == 2
        assert "sets the model and its sizes" in errors


def test_a_terminal_of_ascii_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.emit("β ≤ 1 → ½\n", None)
    stream.seek(0)
    assert stream.read() == "beta <= 1 -> ?\n"
