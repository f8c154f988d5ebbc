"""Every command on a file with one strange layer of three: the others are shown, it is named, the exit code is 2."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import ssmdiag.assessment.memory
from ssmdiag import Recurrence, known_families
from ssmdiag.reports import formats
from tests.families.synthetic import state_dict

Write = Callable[..., Path]
Run = Callable[..., tuple[int, str, str]]
S4D = next(family for family in known_families() if family.name == "s4d").spellings[-1]
PATHS = tuple(f"net.layers.{number}" for number in range(3))


def state() -> dict[str, torch.Tensor]:
    tensors = {}
    for number, path in enumerate(PATHS):
        tensors |= state_dict(S4D, seed=number, path=path)
    return tensors


@pytest.fixture
def model(write_model: Write) -> Path:
    """S4D of three layers, the middle one of which has no modes left."""
    tensors = state()
    for name in ("kernel.log_A_real", "kernel.A_imag", "kernel.C"):
        tensors[f"{PATHS[1]}.{name}"] = tensors[f"{PATHS[1]}.{name}"][:, :0]
    return write_model(tensors)


SAID = f"{PATHS[1]}.kernel.log_A_real is empty: its shape is (4, 0)"


def test_inspect_shows_the_others(model: Path, run: Run) -> None:
    code, out, err = run("inspect", model, "--all")
    assert code == 2
    assert "is empty: its shape is (4, 0)" in " ".join((out + err).split())


@pytest.mark.one_in(8)
@pytest.mark.parametrize("form", formats())
def test_check_says_it_in_every_format(model: Path, run: Run, form: str) -> None:
    code, out, err = run("check", model, "--format", form)
    assert code == 2
    assert "is empty: its shape is (4, 0)" in " ".join((out + err).split())


@pytest.mark.slow
def test_capacity_shows_the_others(model: Path, run: Run) -> None:
    code, out, err = run("capacity", model, "--format", "json")
    assert code == 2
    assert [layer["name"] for layer in json.loads(out)["layers"]] == [PATHS[0], PATHS[2]]
    assert f"not read: {SAID}" in err


def test_kernel_writes_the_others(model: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("kernel", model, "--output", tmp_path / "k.npz", "--length", 64)
    assert code == 2
    assert f"not written: {SAID}" in err
    with np.load(tmp_path / "k.npz") as kernels:
        assert {f"{PATHS[0]}.kernel", f"{PATHS[2]}.kernel"} <= set(kernels.files)
        assert f"{PATHS[1]}.kernel" not in kernels.files


def test_kernel_of_the_strange_layer_says_why_there_is_none(model: Path, run: Run) -> None:
    code, out, err = run("kernel", model, "--layer", PATHS[1])
    assert (code, out) == (2, "")
    assert SAID in err


def test_compare_goes_on_with_the_others(model: Path, run: Run, write_model: Write) -> None:
    sound = write_model(state(), name="sound")
    code, out, _ = run("compare", sound, model, "--format", "json")
    assert code == 2
    code, out, _ = run("compare", sound, model, "--strict", "--format", "json")
    assert code == 2
    proof = json.loads(out)
    assert [layer["outcome"] for layer in proof["layers"]] == ["same", "same"]
    assert any(SAID in problem for problem in proof["problems"])


@pytest.mark.parametrize("asked", [False, True])
def test_the_traceback_is_shown_to_who_asks_for_it(
    model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    def fail(recurrences: Sequence[Recurrence], *others: object, **options: object) -> object:
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(ssmdiag.assessment.memory, "assess_memories", fail)
    monkeypatch.setenv("SSMDIAG_DEBUG", "1" if asked else "")
    logger = logging.getLogger("ssmdiag")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    code, out, err = run("inspect", model)
    assert code == 2
    assert "ZeroDivisionError: float division by zero" in " ".join((out + err).split())
    assert ("Traceback (most recent call last)" in err) == asked


ONE_NAN = "1 of 16 modes in layer 1 is NaN or infinite (SSM401)"


@pytest.mark.parametrize("command", ["inspect", "check", "capacity", "kernel"])
def test_one_nan_in_any_layer_is_a_problem_to_every_command(command: str, run: Run, write_model: Write) -> None:
    tensors = state()
    tensors[f"{PATHS[1]}.kernel.log_A_real"][0, 0] = torch.nan
    path = write_model(tensors)
    out = " ".join(run(command, path, *QUICK.get(command, ()))[1].split())
    assert out.startswith(f"PROBLEM {ONE_NAN}; ")
    if command in ("capacity", "kernel"):
        asked = run(command, path, "--layer", 0, "--length", 50)[1]
        assert not asked.startswith("PROBLEM")


def test_inspect_tells_a_nan_once_on_one_screen(run: Run, write_model: Write) -> None:
    tensors = state()
    tensors[f"{PATHS[1]}.kernel.log_A_real"][0, 0] = torch.nan
    path = write_model(tensors)
    out = run("inspect", path)[1]
    assert len(out.splitlines()) <= 22
    assert " ".join(out.split()).count("1 of 16 values is NaN or infinite") == 1
    assert " ".join(run("inspect", path, "--full")[1].split()).count("1 of 16 values is NaN or infinite") > 1


@pytest.mark.parametrize("command", ["inspect", "check", "capacity", "kernel"])
def test_modes_that_are_all_nan_are_a_problem_to_every_command(command: str, run: Run, write_model: Write) -> None:
    tensors = {name: values * torch.nan if name.endswith("log_A_real") else values for name, values in state().items()}
    code, out, err = run(command, write_model(tensors), *QUICK.get(command, ()))
    assert (code, err) == (int(command == "check"), "")
    assert " ".join(out.split()).startswith("PROBLEM 48 of 48 modes in all 3 layers are NaN or infinite (SSM401)")


@pytest.mark.parametrize("command", ["capacity", "kernel"])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_layer_that_is_left_out_is_named_in_the_answer(command: str, gone: int, run: Run, write_model: Write) -> None:
    tensors = state()
    tensors[f"{PATHS[gone]}.kernel.log_A_real"] = tensors[f"{PATHS[gone]}.kernel.log_A_real"][:, :1]
    missing = state()
    del missing[f"{PATHS[gone]}.kernel.log_A_real"]
    for state_ in (tensors, missing):
        code, out, err = run(command, write_model(state_, name=f"m{len(state_)}"), "--length", 50, "--format", "json")
        data = json.loads(out)
        assert (code, data["status"]) == (2, "problem")
        assert data["answer"].startswith(f"layer {gone} could not be read; ")
        assert "not read: " in err
        assert f"{PATHS[gone]}." in err
        if command == "kernel":
            assert data["layer"] == PATHS[1 - gone if gone == 0 else 0]


QUICK = {"capacity": ("--length", 50), "kernel": ("--length", 50)}
