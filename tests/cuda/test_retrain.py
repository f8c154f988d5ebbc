"""Training on a GPU: the built-in model and a user's, their learned kernels, noise on their rates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.sources import function_source
from ssmdiag.retrain.training import Progress
from tests.cuda.conftest import slow_but
from tests.cuda.same import SINGLE, assert_same
from tests.retrain.small import RECURRENCES, compare_arms, compare_modules, model, task, train

ONE_STEP = Budget(steps=1, batch=8)
ARMS = (Arm("exp", freeze="step"), Arm("best", recurrence_lr=1e-3, weight_decay=0.1))
GIVEN = "tests.retrain.given_models"


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", [pytest.param(name, marks=slow_but(name, "s4d")) for name in RECURRENCES])
def test_a_step_of_the_built_in_model(recurrence: str, cuda: str, tmp_path: Path) -> None:
    arms = ARMS if recurrence == "s4d" else (Arm("exp"), Arm("best"))
    away, home = (
        compare_arms(
            arms, task(), model(recurrence), ONE_STEP,
            task="lf-poly", device=device, perturb=recurrence == "lru", folder=tmp_path / device,
        )
        for device in (cuda, "cpu")
    )  # fmt: skip
    assert all(arm.kernel and arm.final_loss for arm in home.arms)
    assert_same(away, home, tolerance=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delay", "listops"])
def test_a_step_on_tokens_and_classes(name: str, cuda: str) -> None:
    away, home = (
        compare_arms((Arm("exp"),), task(name), model(), ONE_STEP, task=name, device=device) for device in (cuda, "cpu")
    )
    assert_same(away, home, tolerance=SINGLE)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("first", ["cuda", "cpu"])
def test_a_run_goes_on_where_another_device_left_it(first: str, cuda: str, tmp_path: Path) -> None:
    budget = Budget(steps=2, batch=8, validate_every=1)

    def stop(progress: Progress) -> None:
        if progress.step == 1:
            raise KeyboardInterrupt

    (home,) = train([Arm("exp")], task(), model(), budget)
    with pytest.raises(KeyboardInterrupt):
        train([Arm("exp")], task(), model(), budget, folder=tmp_path, device=first, on_progress=stop)
    second = cuda if first == "cpu" else "cpu"
    (away,) = train([Arm("exp")], task(), model(), budget, folder=tmp_path, device=second, resume=True)
    assert_same(away.history, home.history, tolerance=SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("freeze", [pytest.param(part, marks=slow_but(part, "both")) for part in ("none", "both")])
def test_a_step_of_a_users_module(freeze: str, cuda: str, tmp_path: Path) -> None:
    data = task(length=12)
    held_out = (data.validation_inputs[:8], data.validation_targets[:8])
    batches = SampledBatches((data.inputs, data.targets), held_out, 8, "squared error", kernel=data.kernel)
    arms = (Arm("heavy-tail", freeze=freeze), *([Arm("own")] if freeze == "none" else []))
    away, home = (
        compare_modules(
            arms, function_source(f"{GIVEN}:regressor"), batches, ONE_STEP,
            task="lf-poly", device=device, perturb=freeze == "none", folder=tmp_path / device,
        )
        for device in (cuda, "cpu")
    )  # fmt: skip
    assert all(arm.kernel and arm.final_loss for arm in home.arms)
    assert_same(away, home, tolerance=SINGLE)


@pytest.mark.slow
def test_the_command_runs(both: Callable[..., None]) -> None:
    both(
        "retrain", "--task", "lf-exp", "--length", 10, "--samples", 16, "--width", 3, "--modes", 2,
        "--steps", 1, "--batch", 4, "--param", "exp", "--perturb", tolerance=SINGLE,
    )  # fmt: skip
