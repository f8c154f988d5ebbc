"""Out of memory: what fits is tried and said; any other error passes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmdiag.errors import SsmdiagError
from ssmdiag.retrain import ensemble_trainee
from ssmdiag.retrain.arms import OWN, Arm
from ssmdiag.retrain.memory_limit import free_memory, is_out_of_memory, saying_what_fits
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.sources import ModelSource
from ssmdiag.retrain.tasks import TaskSettings, find_task, interface
from ssmdiag.retrain.user_code import read_data
from tests.retrain.given_models import Net
from tests.retrain.small import BUDGET, compare_arms, compare_modules, model, task, train

ON_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 6553600 bytes. Error code 12 (Cannot …)"


def holds(room: int, error: type[BaseException] = torch.OutOfMemoryError) -> object:
    """Return a step that has room for so many sequences of all arms."""

    def attempt(arms: int, batch: int) -> None:
        if arms * batch > room:
            raise error("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has\n …")

    return attempt


@pytest.mark.one_in(12)
@pytest.mark.parametrize(
    ("room", "advice"),
    [
        (768, "--together 6 fits"),
        (128, "--together 1 fits"),
        (100, "--batch 8 fits"),
        (12, "--batch 1 fits"),
        (5, "--batch 4 --together 1 fits"),
        (0, "not even one sequence of one arm fits"),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_the_largest_halving_that_fits_is_advised(room: int, advice: str, error: type[BaseException]) -> None:
    attempt = holds(room, error)
    with pytest.raises(SsmdiagError) as caught, saying_what_fits(attempt, 12, 128, "cuda"):  # type: ignore[arg-type]
        attempt(12, 128)  # type: ignore[operator]
    assert caught.value.seen == (
        "out of memory on cuda with 12 arms together and 128 sequences a step, at a tensor of 20.00 GiB."
    )
    assert advice in str(caught.value.advice)


def test_messages_of_torch_are_recognised_and_others_pass() -> None:
    assert is_out_of_memory(RuntimeError(ON_CPU))
    assert is_out_of_memory(
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
    )
    with pytest.raises(RuntimeError, match="shapes"), saying_what_fits(holds(1), 1, 1, "cpu"):  # type: ignore[arg-type]
        raise RuntimeError("shapes cannot be multiplied")


def test_a_run_that_does_not_fit_says_which_batch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ensemble_trainee.losses_and_gradients

    def limited(ensemble: object, inputs: torch.Tensor, *rest: object) -> object:
        if inputs.shape[1] > 3:
            raise RuntimeError(ON_CPU)
        return plain(ensemble, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ensemble_trainee, "losses_and_gradients", limited)
    with pytest.raises(
        SsmdiagError,
        match=r"2 arms together and 8 sequences a step, at a tensor of 6553600 bytes.\n  next: --batch 2 fits",
    ):
        train([Arm("exp"), Arm("best")], task(), model(), BUDGET)


class Limited(Net):
    """Has room for three sequences."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise RuntimeError(ON_CPU)
        return super().forward(x)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("data", "says"), [("pairs", "--batch 2 fits: a step of it was tried"), ("loaders", "smaller batches of --data")]
)
def test_a_given_model_that_does_not_fit_says_what_does(data: str, says: str) -> None:
    batches = read_data(f"tests.retrain.given_models:{data}", 8)
    with pytest.raises(SsmdiagError, match=rf"out of memory on cpu.* at a tensor of 6553600 bytes.\n  next: {says}"):
        compare_modules([Arm(OWN)], ModelSource("m", lambda seed: Limited()), batches, BUDGET, task="t")


@pytest.mark.slow
def test_noise_that_does_not_fit_is_to_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise RuntimeError(ON_CPU)

    monkeypatch.setattr(ensemble_trainee, "perturbation_curve", full)
    with pytest.raises(SsmdiagError, match=r"adding noise to exp-lr0.01-seed0(.|\n)*leave out --perturb"):
        compare_arms([Arm("exp")], task(), model(), BUDGET, task="t", perturb=True)


def test_a_model_too_large_to_start_is_said() -> None:
    large = ModelSettings(width=10**11, modes=2)
    with pytest.raises(SsmdiagError, match=r"out of memory starting S4D(.|\n)*a smaller --width, --modes or --depth"):
        compare_arms([Arm("exp")], task(), large, BUDGET, task="t")


@pytest.mark.one_in(9)
@pytest.mark.parametrize("name", ["lf-poly", "delay", "listops"])
@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        (TaskSettings(samples=10**13, length=10), r"--samples (\d+) fits"),
        (TaskSettings(samples=10**20), r"--samples (\d+) fits"),
        (TaskSettings(samples=4, length=10**13), r"--length (\d+) with 2,048 samples fits"),
    ],
)
def test_data_that_do_not_fit_say_how_many_do(
    name: str, asked: TaskSettings, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interface, "free_memory", lambda: 200 << 20)
    with pytest.raises(SsmdiagError, match=f"out of memory making the data of --task {name} with --samples") as caught:
        find_task(name).make(asked)
    found = re.match(advice, str(caught.value.advice))
    assert found
    assert 20 <= int(found[1]) <= 200 << 20


def test_some_memory_is_free_and_not_all_that_can_be_addressed() -> None:
    assert 1 << 20 < free_memory() < 1 << 50


LIMITED = """
import resource
import torch
from ssmdiag.errors import SsmdiagError
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.tasks import TaskSettings, find_task
from tests.retrain.small import train
torch.set_num_threads(1)
data = find_task("lf-exp").make(TaskSettings(length=100, samples=4096))
small = ModelSettings(width=8, modes=2)
train([Arm("exp")], data, small, Budget(1, 4))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), used + (400 << 20)))
try:
    train([Arm("exp")], data, ModelSettings(width=64, modes=2, depth=16), Budget(1, 4096))
except SsmdiagError as error:
    print(error.advice)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_process_with_little_memory_finds_a_batch_that_trains() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("--batch "), run.stdout
    assert 32 <= int(run.stdout.split()[1]) <= 256
