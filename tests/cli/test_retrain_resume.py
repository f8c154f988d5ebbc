"""`ssmdiag retrain --resume`: goes on with the same run to the same bits, and refuses any other in a sentence."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag.retrain.state_file import read_state, write_state

Run = Callable[..., tuple[int, str, str]]
GIVEN = "tests.retrain.given_models"
MODULE = ("--model", f"{GIVEN}:regressor", "--param", "own")
BUILT_IN = ("--width", 4, "--modes", 3, "--param", "exp")
TASK = ("--task", "lf-exp", "--length", 12, "--samples", 256)
SIZE = ("--steps", 3, "--batch", 128, "--no-plots", "--format", "json")

both = pytest.mark.parametrize("model", [MODULE, BUILT_IN], ids=["module", "built in"])


def some(names: Iterable[str], quick: set[str]) -> list[Any]:
    """Return parameters of which all but a few are left to the slow suite: each is a run or two of the command."""
    return [pytest.param(name, marks=[] if name in quick else pytest.mark.slow) for name in names]


def losses(output: str) -> list[Any]:
    return [arm["history"] for arm in json.loads(output)["arms"]]


OTHERWISE = {
    "task": (("--task", "lf-poly"), "--task was lf-exp, now lf-poly"),
    "length": (("--length", 13), "--length was 12, now 13"),
    "samples": (("--samples", 255), "other data"),
    "steps": (("--steps", 5), "--steps was 3, now 5"),
    "batch": (("--batch", 99), "--batch was 128, now 99"),
    "checkpoints": (("--checkpoint-every", 2), "--checkpoint-every was none, now 2"),
    "lr": (("--lr", 0.5), "--lr was 0.01, now 0.5"),
    "seed": (("--seed", 7), "--seed was 0, now 7"),
    "freeze": (("--freeze", "eigenvalues"), "--freeze was none, now eigenvalues"),
    "recurrence lr": (("--recurrence-lr", 0.1), "--recurrence-lr was none, now 0.1"),
    "weight decay": (("--weight-decay", 0.1), "--weight-decay was 0, now 0.1"),
}


Begun = Callable[[tuple[object, ...]], tuple[Path, list[Any]]]
_begun: dict[tuple[object, ...], tuple[Path, list[Any]]] = {}


@pytest.fixture
def begun(run: Run, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """Return the folder of a run of this model, a copy for each test, and its losses."""

    def copy(model: tuple[object, ...]) -> tuple[Path, list[Any]]:
        if model not in _begun:
            folder = tmp_path_factory.mktemp("begun")
            code, output, errors = run("retrain", *model, *TASK, *SIZE, "--output", folder)
            assert code == 0, errors
            _begun[model] = folder, losses(output)
        folder, known = _begun[model]
        return Path(shutil.copytree(folder, tmp_path / "run")), known

    return copy


@pytest.mark.one_in(8)
@both
@pytest.mark.parametrize("what", some(OTHERWISE, {"task", "lr"}))
def test_a_run_with_another_setting_is_refused_by_name(
    model: tuple[object, ...], what: str, run: Run, begun: Begun
) -> None:
    given, says = OTHERWISE[what]
    folder, _ = begun(model)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, output, errors = run("retrain", *model, *TASK, *SIZE, *given, "--output", folder, "--resume")
    assert (code, output) == (2, "")
    assert errors.startswith("error: --resume: ")
    assert says in errors
    assert "next: " in errors
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_run_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    options = ("--param", "exp", *TASK, *SIZE, "--output", tmp_path)
    models = {
        "module": ("--model", f"{GIVEN}:regressor"),
        "noisy": ("--model", f"{GIVEN}:noisy"),
        "s4d": ("--width", 4, "--modes", 3),
        "lru": ("--model", "lru", "--width", 4, "--modes", 3),
        "deeper": ("--width", 4, "--modes", 3, "--depth", 2),
    }
    assert run("retrain", *models["module"], *options)[0] == 0
    for name in ("noisy", "s4d", "lru"):
        code, output, errors = run("retrain", *models[name], *options, "--resume")
        assert (code, output) == (2, "")
        assert "--model " in errors
    options = (*options[:-1], tmp_path / "other")
    assert run("retrain", *models["s4d"], *options)[0] == 0
    for name, says in (("module", "--model "), ("lru", "--model was s4d, now lru"), ("deeper", "--depth was 1")):
        code, output, errors = run("retrain", *models[name], *options, "--resume")
        assert (code, output) == (2, "")
        assert says in errors


@pytest.mark.slow
def test_a_run_that_started_with_other_weights_is_refused(run: Run, tmp_path: Path) -> None:
    for kind in (MODULE, BUILT_IN):
        first, folder = tmp_path / f"first-{len(kind)}", tmp_path / f"second-{len(kind)}"
        _, output, _ = run("retrain", *kind, *TASK, *SIZE, "--checkpoint-every", 2, "--output", first)
        steps = sorted(Path(json.loads(output)["arms"][-1]["checkpoint"]).parent.glob("step-*"))
        options = (*TASK, *SIZE, "--param", "own", *kind[:2] * (kind is MODULE), "--output", folder)
        code, whole, errors = run("retrain", steps[0], *options)
        assert code == 0, errors
        code, again, errors = run("retrain", steps[0], *options, "--resume")
        assert losses(again) == losses(whole)
        code, output, errors = run("retrain", steps[1], *options, "--resume")
        assert (code, output) == (2, "")
        assert "other initial weights" in errors


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Write mine.py, the user's own, and forget what it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body: str) -> None:
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        Path("mine.py").write_text("import torch\n" + textwrap.dedent(body))

    yield write
    sys.modules.pop("mine", None)


CODE = f"""
from {GIVEN} import Net, pairs
class Mine(Net):
    def forward(self, x):
        return super().forward(SCALE * x)
def model(): return Mine()
def loss(answers, targets): return (answers - targets).POWER().mean()
def data(): return *pairs(), loss
"""
MINE = ("--model", "mine:model", "--data", "mine:data", "--param", "own", *SIZE)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("scale", "power"), [("2", "square"), ("1", "abs")])
def test_a_run_whose_code_has_changed_is_refused(
    scale: str, power: str, run: Run, write_module: Callable[[str], None]
) -> None:
    write_module(CODE.replace("SCALE", "1").replace("POWER", "square"))
    _, whole, _ = run("retrain", *MINE, "--output", "run")
    _, again, _ = run("retrain", *MINE, "--output", "run", "--resume")
    assert losses(again) == losses(whole)
    write_module(CODE.replace("SCALE", scale).replace("POWER", power))
    code, output, errors = run("retrain", *MINE, "--output", "run", "--resume")
    assert (code, output) == (2, "")
    assert "of another model or loss function: the loss before training was " in errors


STREAM = f"""
from {GIVEN} import Net, sequences
from torch.utils.data import DataLoader, TensorDataset
def model(): return Net()
def data():
    x, y = sequences(22, 1)
    held = sequences(9, 2)
    CHANGE
    return DataLoader(TensorDataset(x, y), 8, shuffle=True), DataLoader(TensorDataset(*held), 4)
"""
CHANGES = {
    "a training sample": "x[13, 5] += 1e-3",
    "a validation sample": "held[1][8] *= 1.1",
    "order": "x, y = x.flip(0), y.flip(0)",
}


@pytest.mark.slow
@pytest.mark.parametrize("change", some(CHANGES, {next(iter(CHANGES))}))
def test_a_run_on_other_batches_of_a_loader_is_refused(
    change: str, run: Run, write_module: Callable[[str], None]
) -> None:
    write_module(STREAM.replace("CHANGE", "pass"))
    options = (
        "--model",
        "mine:model",
        "--data",
        "mine:data",
        "--param",
        "own",
        "--steps",
        7,
        *SIZE[4:],
        "--output",
        "run",
    )
    code, whole, errors = run("retrain", *options)
    assert code == 0, errors
    _, again, _ = run("retrain", *options, "--resume")
    assert losses(again) == losses(whole)
    write_module(STREAM.replace("CHANGE", CHANGES[change]))
    code, output, errors = run("retrain", *options, "--resume")
    assert (code, output) == (2, "")
    assert "was trained with other settings: other data" in errors


@pytest.mark.slow
def test_data_may_be_called_otherwise_when_a_run_is_resumed(run: Run, tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("to be or not to be " * 40)
    options = (*BUILT_IN, "--length", 8, *SIZE, "--output", tmp_path / "run")
    _, whole, _ = run("retrain", "--text", tmp_path / "one.txt", *options)
    code, again, errors = run("retrain", "--text", tmp_path / "two.txt", *options, "--resume")
    assert code == 0, errors
    assert losses(again) == losses(whole)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-50] ^= 4
    path.write_bytes(content)


def earlier(path: Path) -> None:
    torch.save({"version": 1, "step": 4}, path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def without_parts(path: Path) -> None:
    write_state(path, {"arms": read_state(path)["arms"]})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (flip, "damaged: its size or its SHA-256 does not match"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "damaged"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"0"), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "not a state to resume from"),
    "an earlier version": (earlier, "a state of version '1', saved by another version of ssmdiag"),
    "a pipe": (pipe, "not a regular file"),
    "a device": (device, "not a regular file"),
    "not whole": (without_parts, "not a state to resume from"),
}


@pytest.mark.one_in(6)
@both
@pytest.mark.parametrize("damage", some(DAMAGES, {"a flipped bit", "not whole"}))
def test_a_damaged_state_is_refused(model: tuple[object, ...], damage: str, run: Run, begun: Begun) -> None:
    harm, says = DAMAGES[damage]
    folder, _ = begun(model)
    options = (*model, *TASK, *SIZE, "--output", folder, "--resume")
    (state,) = folder.glob("state-*.state")
    harm(state)
    code, output, errors = run("retrain", *options)
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {state}: {says}")
    assert "delete it to start these arms anew" in errors
    # Another arm asked for alone: the folder is looked through.
    code, output, errors = run("retrain", *options, "--lr", 0.3)
    assert (code, output) == (2, "")
    assert "Traceback" not in errors


@pytest.mark.slow
@both
def test_an_arm_may_join_a_run_that_is_resumed(model: tuple[object, ...], run: Run, begun: Begun) -> None:
    folder, known = begun(model)
    options = (*model, *TASK, *SIZE, "--together", 1, "--output", folder)
    code, output, errors = run("retrain", *options, "--lr", 0.01, "--lr", 0.02, "--resume")
    assert code == 0, errors
    assert losses(output)[0] == known[0]
    assert len(losses(output)) == 2
