"""What every task owes: the shapes and types it declares, data that the seed decides, the kernel that solves it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ssmdiag.retrain.tasks
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.batches import loss_of_nothing
from ssmdiag.retrain.gradients import losses_of
from ssmdiag.retrain.learned_kernel import fit_target_law
from ssmdiag.retrain.tasks import Task, TaskData, TaskSettings, known_tasks
from ssmdiag.retrain.tasks.interface import FEW
from tests.retrain.small import ensemble

FILES = {path.stem for path in Path(ssmdiag.retrain.tasks.__file__).parent.glob("*.py")} - {"__init__"}
PAPERS = Path(__file__).parents[3] / "examples" / "papers" / "README.md"
SAMPLES = 20
each_task = pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=task.name, marks=[pytest.mark.slow] if task.name == "listops" else [])
        for task in known_tasks()
    ],
)


def write_file(task: Task, folder: Path) -> Path | None:
    """Return a file that a task can read, where it reads one."""
    if not task.needs_path:
        return None
    if task.name == "text":
        path = folder / "corpus.txt"
        path.write_bytes(random.Random(0).randbytes(4096))
        return path
    path = folder / "data.npz"
    values = np.random.default_rng(0)
    np.savez(path, x=values.normal(size=(40, 12)), y=values.integers(0, 3, 40))
    return path


def make(task: Task, folder: Path, seed: int = 0) -> TaskData:
    """Return short sequences, of images those that there are."""
    length = None if task.name == "digits" else 12
    return task.make(TaskSettings(length=length, samples=SAMPLES, seed=seed, path=write_file(task, folder)))


def numbers(data: TaskData) -> list[Tensor]:
    return [data.inputs, data.targets, data.validation_inputs, data.validation_targets]


def test_every_file_of_the_room_has_tasks_and_every_task_a_name_of_its_own() -> None:
    tasks = known_tasks()
    assert {task.maker.__module__.rpartition(".")[2] for task in tasks} == FILES - ssmdiag.retrain.tasks.MACHINERY
    assert len({task.name for task in tasks}) == len(tasks)
    assert [task.name for task in tasks] == sorted(task.name for task in tasks)


@each_task
def test_a_task_stands_in_the_papers_readme(task: Task) -> None:
    row = f"| `{task.name}` | {task.summary} | {task.source} |"
    assert row in PAPERS.read_text(encoding="utf-8"), row


@each_task
def test_the_data_have_the_shapes_and_types_that_are_declared(task: Task, tmp_path: Path) -> None:
    data = make(task, tmp_path)
    steps = data.length
    assert steps == (64 if task.name == "digits" else 12)
    assert 0 < len(data.inputs) <= SAMPLES
    assert 0 < len(data.validation_inputs) < FEW
    for x, y in ((data.inputs, data.targets), (data.validation_inputs, data.validation_targets)):
        assert x.device.type == y.device.type == "cpu"
        assert len(x) == len(y)
        if data.vocabulary:
            assert (x.dtype, tuple(x.shape[1:])) == (torch.int64, (steps,))
            assert 0 <= int(x.min()) <= int(x.max()) < data.vocabulary
        else:
            assert (x.dtype, tuple(x.shape[1:])) == (torch.float32, (steps, data.features))
            assert bool(x.isfinite().all())
        answers = (steps,) if data.read_out == "every step" else ()
        if data.loss == "cross-entropy":
            assert (y.dtype, tuple(y.shape[1:])) == (torch.int64, answers)
            assert 0 <= int(y.min()) <= int(y.max()) < data.outputs
        else:
            assert (y.dtype, tuple(y.shape[1:])) == (torch.float32, (*answers, data.outputs))
            assert bool(y.isfinite().all())


@each_task
def test_a_task_is_answered_and_scored_by_the_model_it_describes(task: Task, tmp_path: Path) -> None:
    data = make(task, tmp_path)
    answers = ensemble(Arm("exp"), data=data).forward(data.inputs[None])
    (loss,) = losses_of(answers.detach(), data.targets[None], data)
    nothing = loss_of_nothing(data.validation_targets, data.outputs)
    assert nothing is not None
    assert 0.1 * nothing < float(loss) < 100 * nothing


@each_task
def test_the_seed_decides_the_data_and_no_other_state_does(task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    one, same, other = (make(task, tmp_path, seed) for seed in (1, 1, 2))
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]
    assert all(a.equal(b) for a, b in zip(numbers(one), numbers(same), strict=True))
    assert one.inputs.equal(other.inputs) == (task.name == "text")  # read in the order of the file


@each_task
def test_the_kernel_solves_the_task_and_its_law_describes_it(task: Task, tmp_path: Path) -> None:
    data = make(task, tmp_path)
    assert data.law is None or data.kernel is not None
    assert (data.kernel is not None) == task.name.startswith("lf-")
    if data.kernel is not None:
        assert (data.kernel.dtype, tuple(data.kernel.shape)) == (torch.float64, (data.length,))
        lags = torch.arange(data.length)[:, None] - torch.arange(data.length)
        past = data.kernel[lags.clamp(min=0)] * (lags >= 0)
        answers = data.inputs[..., 0].double() @ past.T
        assert torch.allclose(answers, data.targets[..., 0].double(), atol=3e-6)
    if data.law is not None and data.kernel is not None:
        t = torch.arange(data.length, dtype=torch.float64)
        decay = (-(data.law.rate or 0.0) * t).exp()
        power = (1 + t / (data.law.offset or 1.0)) ** -(data.law.exponent or 0.0)
        assert torch.allclose(data.kernel, decay * power, rtol=1e-12)


@each_task
def test_a_law_is_found_again_in_the_whole_kernel(task: Task, tmp_path: Path) -> None:
    if make(task, tmp_path).law is None:
        return
    data = task.make(TaskSettings(samples=1, path=write_file(task, tmp_path)))
    if data.law is not None and data.kernel is not None:
        found = fit_target_law(data.kernel, torch.zeros_like(data.kernel), data.law)
        assert found.describes
        for name in ("exponent", "offset", "rate"):
            asked = getattr(data.law, name)
            assert getattr(found, name) == (None if asked is None else pytest.approx(asked, rel=0.05))


@each_task
def test_a_task_that_reads_a_file_asks_for_it(task: Task, tmp_path: Path) -> None:
    if task.needs_path:
        with pytest.raises(ConfigurationError, match=r"expected: --(text|data) FILE"):
            task.make(TaskSettings())
    else:
        assert len(make(task, tmp_path).inputs) == SAMPLES
