"""What the loop promises for whatever it trains: an ensemble of the built-in model, a module, a module on a stream."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmdiag import extract_recurrences
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.batches import SampledBatches
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.ensemble_trainee import EnsembleTrainee
from ssmdiag.retrain.module_trainee import ModuleTrainee
from ssmdiag.retrain.results import ArmResult, Point
from ssmdiag.retrain.state_file import read_state, write_state
from ssmdiag.retrain.streamed_batches import StreamedBatches
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.training import Progress, Trainee, train
from ssmdiag.retrain.user_code import build_model, read_data
from tests.retrain.given_models import STEPS
from tests.retrain.small import model, task

GIVEN = "tests.retrain.given_models"
BUDGET = Budget(steps=8, batch=8, validate_every=3, checkpoint_every=4)


class StoppedError(Exception):
    pass


def small(name: str = "lf-poly") -> TaskData:
    whole = task(name, STEPS)
    return replace(
        whole, validation_inputs=whole.validation_inputs[:9], validation_targets=whole.validation_targets[:9]
    )


def ensemble(lr: float = 0.05, data: TaskData | None = None, recurrence: str = "s4d") -> Trainee:
    arms = (Arm("best", lr=lr, weight_decay=0.1), Arm("exp", lr=lr, seed=1, freeze="eigenvalues"))
    return EnsembleTrainee(arms, data or small(), model(recurrence), BUDGET.batch)


def lru(**given: Any) -> Trainee:
    return ensemble(recurrence="lru", **given)


def module(lr: float = 0.05, data: TaskData | None = None) -> Trainee:
    batches = SampledBatches.of(data or small(), BUDGET.batch)
    return ModuleTrainee(build_model(f"{GIVEN}:noisy", 0), Arm(OWN, lr=lr, seed=3), batches)


def streamed(lr: float = 0.05, data: TaskData | None = None) -> Trainee:
    batches = read_data(f"{GIVEN}:loaders", BUDGET.batch)
    assert isinstance(batches, StreamedBatches)
    if data is not None:
        batches = replace(batches, train=[(data.inputs[:8], data.targets[:8])] * 3)
    return ModuleTrainee(build_model(f"{GIVEN}:noisy", 0), Arm(OWN, lr=lr, seed=3), batches)


Make = Callable[..., Trainee]
KINDS: dict[str, Make] = {"ensemble": ensemble, "ensemble of LRU": lru, "module": module, "streamed": streamed}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
no_stream = pytest.mark.parametrize("make", [ensemble, module], ids=["ensemble", "module"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("*/*")}


def outcome(results: Sequence[ArmResult]) -> list[Any]:
    return [(result.arm, result.history, result.diverged_at) for result in results]


def state_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("state-*.state")
    return read_state(path)


def stopped(make: Make, folder: Path, at: int, **given: Any) -> None:
    """Train up to the validation of a step, and leave what is there by then."""

    def stop(progress: Progress) -> None:
        if progress.step == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(make(**given), BUDGET, folder=folder, on_progress=stop)


@pytest.mark.one_in(4)
@every_kind
def test_a_run_resumed_ends_with_the_bits_of_one_that_was_not_stopped(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = train(make(), BUDGET, folder=tmp_path / "whole")
    torch.manual_seed(2)  # no seed but the arms' own matters
    before = torch.get_rng_state()
    for at in (0, 3, 6, 8):
        folder = tmp_path / str(at)
        stopped(make, folder, at)
        assert state_in(folder)["run"]["step"] == at
        assert outcome(train(make(), BUDGET, folder=folder, resume=True)) == outcome(whole)
        assert files(folder) == files(tmp_path / "whole")
    assert torch.get_rng_state().equal(before)


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("heard_signals")
@every_kind
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_signal_lets_the_step_end_and_leaves_a_state_that_goes_on_to_the_same_bits(
    make: Make, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    whole = train(make(), BUDGET, folder=tmp_path / "whole")
    trainee = make()
    plain = trainee.losses

    def interrupted(step: int) -> list[float]:
        if step == 4:
            os.kill(os.getpid(), number)
        return plain(step)

    monkeypatch.setattr(trainee, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt) as raised:
        train(trainee, BUDGET, folder=tmp_path / "parts")
    assert [(arm.interrupted_at, arm.final_loss) for arm in raised.value.arms] == [(5, None)] * len(whole)  # type: ignore[attr-defined]
    assert state_in(tmp_path / "parts")["run"]["step"] == 5
    assert outcome(train(make(), BUDGET, folder=tmp_path / "parts", resume=True)) == outcome(whole)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


@pytest.mark.one_in(2)
@every_kind
def test_a_run_on_other_data_or_with_other_steps_is_refused_and_left_as_it_is(make: Make, tmp_path: Path) -> None:
    stopped(make, tmp_path, 6)
    before = files(tmp_path), state_in(tmp_path)["run"]["step"]
    with pytest.raises(ConfigurationError, match="was trained with other settings: other data"):
        train(make(data=small("lf-exp")), BUDGET, folder=tmp_path, resume=True)
    with pytest.raises(ConfigurationError, match="--steps was 8, now 9"):
        train(make(), replace(BUDGET, steps=9), folder=tmp_path, resume=True)
    assert (files(tmp_path), state_in(tmp_path)["run"]["step"]) == before


@pytest.mark.one_in(2)
@every_kind
def test_a_model_that_answers_otherwise_than_when_it_was_begun_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(make, tmp_path, 3)
    trainee = make()
    plain = trainee.validate
    other = [replace(point, loss=1.1 * point.loss) for point in plain(0)]
    monkeypatch.setattr(trainee, "validate", lambda step: other)
    with pytest.raises(ConfigurationError, match="the loss before training was"):
        train(trainee, BUDGET, folder=tmp_path, resume=True)


@pytest.mark.one_in(2)
@every_kind
def test_arms_that_diverge_end_the_run_and_are_not_trained_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Progress] = []
    results = train(make(lr=1e30), BUDGET, folder=tmp_path, on_progress=seen.append)
    assert [result.diverged_at for result in results] == [1] * len(results)  # the loss after the first step
    assert [[point.step for point in result.history] for result in results] == [[0]] * len(results)
    assert [progress.step for progress in seen] == [0]
    trainee = make(lr=1e30)
    monkeypatch.setattr(trainee, "losses", None)
    assert outcome(train(trainee, BUDGET, folder=tmp_path, resume=True)) == outcome(results)


@pytest.mark.one_in(3)
@every_kind
@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_has_diverged_wherever_it_is_seen(
    make: Make, loss: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(make().arms)
    trained, validated = make(), make()
    updates: list[Sequence[bool]] = []
    monkeypatch.setattr(trained, "losses", lambda step: [loss] * count)
    monkeypatch.setattr(trained, "update", lambda scale, running: updates.append(running))
    monkeypatch.setattr(trained, "nothing", None)
    assert [result.diverged_at for result in train(trained, BUDGET)] == [0] * count
    assert updates == [[False] * count]
    monkeypatch.setattr(validated, "validate", lambda step: [Point(step, loss)] * count)
    results = train(validated, BUDGET, folder=tmp_path)
    assert [(result.diverged_at, result.history, result.checkpoints) for result in results] == [(0, (), ())] * count


@no_stream
def test_targets_of_nothing_but_zeros_are_no_reason_to_diverge(make: Make) -> None:
    data = small()
    data = replace(data, targets=0 * data.targets, validation_targets=0 * data.validation_targets)
    assert [result.diverged_at for result in train(make(data=data), BUDGET)] == [None] * len(make().arms)


@pytest.mark.one_in(2)
@every_kind
def test_a_trained_arm_in_memory_is_the_one_in_its_file(make: Make, tmp_path: Path) -> None:
    trainee = make()
    for k, result in enumerate(train(trainee, BUDGET, folder=tmp_path)):
        (live,) = extract_recurrences(trainee.checkpoint(k))
        (stored,) = extract_recurrences(result.checkpoints[-1])
        assert live.log_eigenvalues.equal(stored.log_eigenvalues)


class OfTwo(Ranks):
    """A rank beside another one that has something else."""

    def gather(self, item: Any) -> list[Any]:
        return [item, "something else"]


@every_kind
def test_ranks_that_would_train_on_other_batches_are_refused(make: Make) -> None:
    trainee = make()
    trainee.ranks = OfTwo(count=2)
    with pytest.raises(ConfigurationError, match="not the same on all ranks"):
        trainee.require_same_batches(0)


@pytest.mark.one_in(4)
@every_kind
def test_where_steps_were_trained_is_kept(make: Make, tmp_path: Path) -> None:
    assert {result.places for result in train(make(), BUDGET)} == {("cpu",)}
    stopped(make, tmp_path, 3)
    (path,) = tmp_path.glob("state-*.state")
    state = read_state(path)
    state["run"]["places"] = ["2 ranks on cuda"]
    write_state(path, state)
    results = train(make(), BUDGET, folder=tmp_path, resume=True)
    assert {result.places for result in results} == {("2 ranks on cuda", "cpu")}
    state = read_state(path)  # of the last step: nothing is left to train
    state["run"]["places"] = ["cuda"]
    write_state(path, state)
    assert {result.places for result in train(make(), BUDGET, folder=tmp_path, resume=True)} == {("cuda",)}


@pytest.mark.parametrize("wild", [False, True], ids=["calm", "diverged"])
def test_a_state_of_a_module_as_it_was_kept_before_goes_on_to_the_same_bits(wild: bool, tmp_path: Path) -> None:
    given = {"lr": 1e30} if wild else {}
    whole = train(module(**given), BUDGET, folder=tmp_path / "whole")
    if wild:
        train(module(**given), BUDGET, folder=tmp_path / "old")
    else:
        stopped(module, tmp_path / "old", 3)
    (path,) = (tmp_path / "old").glob("state-*.state")
    state = read_state(path)
    run = state["run"]
    del run["places"]
    run["diverged_at"] = run.pop("diverged").get(0)
    (run["history"],) = run["history"]
    write_state(path, state)
    assert outcome(train(module(**given), BUDGET, folder=tmp_path / "old", resume=True)) == outcome(whole)
    assert files(tmp_path / "old") == files(tmp_path / "whole")
