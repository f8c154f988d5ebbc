"""Training arms together: as each would go alone, to the bit again, through interruptions and divergence."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain import ensemble_trainee, training
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.batches import ArmBatches
from ssmdiag.retrain.gradients import losses_of
from ssmdiag.retrain.model import ACTIVATION, MOST
from ssmdiag.retrain.results import ArmResult
from ssmdiag.retrain.state_file import read_state
from ssmdiag.retrain.tasks import TaskData
from ssmdiag.retrain.training import Progress, schedule
from tests.retrain.small import (
    BUDGET,
    FREEZES,
    RECURRENCES,
    Freeze,
    compare_arms,
    ensemble,
    history,
    model,
    task,
    train,
)

ARMS = (
    Arm("exp", lr=0.05),
    Arm("best", lr=0.02, weight_decay=0.1),
    Arm("exp", lr=0.05, seed=1, recurrence_lr=1e-3),
    Arm("softplus", freeze="eigenvalues", init="long"),
)


def same(one: Sequence[ArmResult], other: Sequence[ArmResult]) -> bool:
    """Whether losses, divergence and the last weights agree to the bit."""
    for a, b in zip(one, other, strict=True):
        if a.history != b.history or a.diverged_at != b.diverged_at or len(a.checkpoints) != len(b.checkpoints):
            return False
        for path, copy in zip(a.checkpoints, b.checkpoints, strict=True):
            weights, others = load_file(path), load_file(copy)
            if not all(value.equal(others[name]) for name, value in weights.items()):
                return False
    return True


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_arms_together_go_as_each_alone(recurrence: str) -> None:
    data = task()
    together = train(ARMS, data, model(recurrence), BUDGET)
    for arm, result in zip(ARMS, together, strict=True):
        (alone,) = train([arm], data, model(recurrence), BUDGET)
        assert [point.step for point in result.history] == [0, 3, 6, 8]
        for (_, loss), (_, other) in zip(history(result), history(alone), strict=True):
            assert loss == pytest.approx(other, rel=2e-4)


@pytest.mark.slow
def test_the_number_of_arms_at_a_time_is_only_a_matter_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = task()
    at_once = train(ARMS, data, model(), BUDGET)
    monkeypatch.setitem(ACTIVATION, "cpu", 1)
    for one, other in zip(train(ARMS, data, model(), BUDGET), at_once, strict=True):
        assert [loss for _, loss in history(one)] == pytest.approx([loss for _, loss in history(other)], rel=2e-4)


@pytest.mark.parametrize("pieces", [1, 1 << 20])
def test_an_arm_of_nan_leaves_the_bits_of_the_others(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATION, "cpu", pieces)
    data = task()
    losses, gradients = [], []
    for broken in (False, True):
        arms = ensemble(*ARMS, data=data)
        if broken:
            with torch.no_grad():
                for value in arms.parameters.values():
                    value[1] = math.nan
        batch = ArmBatches(arms.arms, data, 8, "cpu").at(0)
        loss, gradient = ensemble_trainee.losses_and_gradients(arms, *batch, data)
        losses.append(loss)
        gradients.append(gradient)
    assert losses[1][1].isnan()
    rest = torch.tensor([0, 2, 3])
    assert losses[0][rest].equal(losses[1][rest])
    assert all(value[rest].equal(gradients[1][name][rest]) for name, value in gradients[0].items())


def test_an_arm_that_diverges_is_kept_with_its_step_and_the_others_keep_their_bits(tmp_path: Path) -> None:
    data = task()
    calm = train(ARMS, data, model(), BUDGET, folder=tmp_path / "calm")
    wild = train([*ARMS[:1], replace(ARMS[1], lr=1e9), *ARMS[2:]], data, model(), BUDGET, folder=tmp_path / "wild")
    assert wild[1].diverged_at == 1  # the loss after the first step
    assert wild[1].final_loss is None
    assert [point.step for point in wild[1].history] == [0]
    assert [path.name for path in wild[1].checkpoints] == ["step-0.safetensors"]
    assert same([*calm[:1], *calm[2:]], [*wild[:1], *wild[2:]])


def test_a_loss_far_above_that_of_nothing_has_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "DIVERGED", 1e-3)
    assert train([Arm("exp")], task(), model(), BUDGET)[0].diverged_at == 0


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_a_run_repeats_to_the_bit(recurrence: str, tmp_path: Path) -> None:
    data = task()
    torch.manual_seed(1)
    first = train(ARMS, data, model(recurrence), BUDGET, folder=tmp_path / "first")
    torch.manual_seed(2)  # no seed but the arms' own matters
    before = torch.get_rng_state()
    second = train(ARMS, data, model(recurrence), BUDGET, folder=tmp_path / "second")
    assert same(first, second)
    assert torch.get_rng_state().equal(before)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("freeze", FREEZES)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_what_is_frozen_keeps_its_bits_and_the_rest_moves(recurrence: str, freeze: Freeze, tmp_path: Path) -> None:
    arm = Arm("best", freeze=freeze, lr=0.1, weight_decay=0.3)
    (result,) = train([arm], task(), model(recurrence), BUDGET, folder=tmp_path)
    first, last = (load_file(path) for path in (result.checkpoints[0], result.checkpoints[-1]))
    arms = ensemble(arm, recurrence=recurrence)
    kept = {name for name in first if arms.recurrent(name) and freeze in (arms.recurrent(name), "both")}
    unmoved = {name for name, value in first.items() if value.view(torch.int32).equal(last[name].view(torch.int32))}
    assert unmoved == kept
    assert len({arms.recurrent(name) for name in first}) == (3 if recurrence == "s4d" else 2)


def test_a_recurrence_rate_of_its_own_moves_the_recurrence_by_it(tmp_path: Path) -> None:
    budget = Budget(steps=1, batch=8)
    (result,) = train([Arm("exp", lr=1e-2, recurrence_lr=1e-5)], task(), model(), budget, folder=tmp_path)
    first, last = (load_file(path) for path in result.checkpoints)
    for name, value in first.items():
        moved = (last[name] - value).abs().max()
        # Adam's first step is the learning rate, whatever the gradient.
        assert float(moved) == pytest.approx(1e-5 if "kernel" in name and "kernel.C" not in name else 1e-2, rel=0.05)


class StoppedError(Exception):
    pass


KILLED = """
import sys
from pathlib import Path
from ssmdiag.retrain.arms import Arm, Budget
from tests.retrain.small import model, task, train
train([Arm("exp"), Arm("best")], task(), model(), Budget(100_000, 8, 2, 4), folder=Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_kill_leaves_a_state_to_resume_from(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("*/step-*"))) < 12 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        run.kill()
        run.wait()
    (path,) = tmp_path.glob("state-*.state")
    step = read_state(path)["run"]["step"]
    assert step > 0
    seen: list[int] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.step)
        raise StoppedError

    with pytest.raises(StoppedError):
        train(
            [Arm("exp"), Arm("best")], task(), model(), Budget(100_000, 8, 2, 4),
            folder=tmp_path, resume=True, on_progress=stop,
        )  # fmt: skip
    assert seen == [step + 2]


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": model(depth=2)}, "--depth was 1, now 2"),
        ({"budget": replace(BUDGET, steps=9)}, "--steps was 8, now 9"),
        ({"data": task("lf-exp")}, "other data"),
        ({"data": task(length=17)}, "other data"),
        ({"arms": ARMS[:2]}, "in a group of 4 arms; now it is one of 2"),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict, says: str, tmp_path: Path) -> None:
    given = {"arms": ARMS, "data": task(), "settings": model(), "budget": BUDGET}
    train(**given, folder=tmp_path)
    with pytest.raises(ConfigurationError, match=says):
        train(**(given | change), folder=tmp_path, resume=True)


@pytest.mark.slow
def test_groups_that_are_yet_to_begin_are_begun_by_resuming(tmp_path: Path) -> None:
    data = task()
    train(ARMS[:2], data, model(), BUDGET, folder=tmp_path / "parts")
    settings = {"task": "lf-poly", "together": 2}
    resumed = compare_arms(ARMS, data, model(), BUDGET, folder=tmp_path / "parts", resume=True, **settings)
    whole = compare_arms(ARMS, data, model(), BUDGET, folder=tmp_path / "whole", **settings)
    assert same(whole.arms, resumed.arms)


def test_checkpoints_of_an_older_run_in_the_same_folder_are_not_this_ones(tmp_path: Path) -> None:
    arm = Arm("exp")
    train([arm], task(), model(), replace(BUDGET, steps=12, checkpoint_every=4), folder=tmp_path)
    train([arm], task(), model(), replace(BUDGET, steps=12, checkpoint_every=3), folder=tmp_path)
    (result,) = train([arm], task(), model(), replace(BUDGET, steps=6), folder=tmp_path)
    assert [path.name for path in result.checkpoints] == ["step-0.safetensors", "step-6.safetensors"]
    (wild,) = train([arm], task(), model(), replace(BUDGET, steps=12, checkpoint_every=3), folder=tmp_path)
    assert [path.name for path in wild.checkpoints] == [f"step-{step:02d}.safetensors" for step in (0, 3, 6, 9, 12)]


def test_batches_are_those_of_the_seed_whatever_the_step_they_are_asked_at() -> None:
    data = task()
    arms = (Arm("exp", seed=3), Arm("best", seed=3), Arm("exp", seed=4))
    in_order = ArmBatches(arms, data, 8, "cpu")
    seen = [in_order.at(step) for step in range(20)]
    assert ArmBatches(arms, data, 8, "cpu").at(13)[0].equal(seen[13][0])
    for inputs, targets in seen:
        assert inputs[0].equal(inputs[1])
        assert not inputs[0].equal(inputs[2])
        assert targets[0].equal(targets[1])
    epoch = torch.cat([inputs[0] for inputs, _ in seen[:8]]).flatten(1)
    assert sorted(epoch.tolist()) == sorted(data.inputs.flatten(1).tolist())


def test_the_schedule_rises_to_the_rate_and_falls_to_nothing() -> None:
    budget = Budget(steps=100, batch=1, warm_up=10)
    scales = [schedule(step, budget) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert max(scales) < 1.0
    assert scales[50] == pytest.approx(0.5)
    assert 0 < scales[99] < 1e-3
    assert scales.index(max(scales)) == 9


def test_losses_are_means_over_everything_but_arms() -> None:
    data = task("delay")
    generator = torch.Generator().manual_seed(0)
    answers, targets = (torch.randn(2, 3, 16, 4, generator=generator) for _ in range(2))
    losses = losses_of(answers, targets, data)
    assert losses.tolist() == pytest.approx([float(((answers[k] - targets[k]) ** 2).mean()) for k in range(2)])
    with pytest.raises(ValueError, match="answers are"):
        losses_of(answers, targets[..., :1], data)


def classes(data: TaskData, outputs: int) -> TaskData:
    return replace(data, loss="cross-entropy", outputs=outputs)


def test_cross_entropy_of_equal_answers_is_the_log_of_the_classes() -> None:
    data = classes(task(), 5)
    targets = torch.arange(12).view(2, 6) % 5
    assert losses_of(torch.zeros(2, 6, 5), targets, data).tolist() == pytest.approx([math.log(5)] * 2)
    steps: Tensor = torch.arange(24).view(2, 3, 4) % 5
    assert losses_of(torch.zeros(2, 3, 4, 5), steps, data).tolist() == pytest.approx([math.log(5)] * 2)


@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole(
    recurrence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = task()
    arms = ensemble(*ARMS, recurrence=recurrence, data=data)
    batch = ArmBatches(ARMS, data, 22, "cpu").at(0)
    losses, gradients = ensemble_trainee.losses_and_gradients(arms, *batch, data)
    monkeypatch.setitem(MOST, "cpu", 5 * 4 * 16 * 6)  # five sequences of 16 steps and 6 channels
    assert arms.sequences_at_once(16) == 5
    in_parts, also = ensemble_trainee.losses_and_gradients(arms, *batch, data)
    assert not in_parts.equal(losses)  # rounding: it was in parts
    torch.testing.assert_close(in_parts, losses, rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(also[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_a_device_without_float64_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="float64"):
        train(ARMS[:1], task(), model(), BUDGET, device="mps")
