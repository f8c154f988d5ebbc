"""What a trend is judged by besides its points: the modes slowest at first, and the learning rate of the optimiser."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch

from ssmdiag.checkpoint import read_checkpoint
from ssmdiag.compare.layer_history import judge_layers
from ssmdiag.compare.learning_rate import Schedule, read_learning_rates, schedule_of, steps_at_last_rate
from ssmdiag.compare.mode_drift import CHANNELS, FEWEST, drifts_of_first_slowest, p_of_modes
from ssmdiag.compare.projection import Unnamed
from ssmdiag.compare.run import RunComparison, compare_run
from ssmdiag.compare.trend import Verdict
from ssmdiag.families.recognition import recognise
from tests.compare.test_comparison import STEPS, base, mamba, steady


def rates(seed: int, channels: int, modes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    before = torch.rand(channels, modes, generator=generator, dtype=torch.float64) + 0.01
    return before, before * torch.exp(0.1 * torch.randn(channels, modes, generator=generator, dtype=torch.float64))


def test_the_change_of_the_first_slowest_is_scipys_t_test_of_one_mode_a_channel() -> None:
    before, now = rates(0, 400, 8)
    slowest = before.min(1)
    change = (now[torch.arange(400), slowest.indices] / slowest.values).log()
    change = change[slowest.values.argsort()].numpy()
    drifts = drifts_of_first_slowest(before, now)
    assert [drift.count for drift in drifts] == [20, 100, 400]
    for drift in drifts:
        expected = scipy.stats.ttest_1samp(change[: drift.count], 0)
        assert drift.mean == pytest.approx(change[: drift.count].mean())
        side = math.copysign(1, drift.mean)
        assert drift.p(side) == pytest.approx(expected.pvalue)
        assert drift.p(-side) == 1.0
    assert p_of_modes(drifts, 1.0) == min(1.0, 3 * min(drift.p(1.0) for drift in drifts))


def test_modes_of_few_channels_count_one_by_one_and_copies_once() -> None:
    before, now = rates(1, CHANNELS - 1, 40)
    assert drifts_of_first_slowest(before, now)[-1].count == 40 * (CHANNELS - 1)
    twice = [values.repeat(1, 2) for values in (before, now)]
    assert drifts_of_first_slowest(*twice) == drifts_of_first_slowest(before, now)
    heads = [values[:, :1].repeat_interleave(16, 0) for values in rates(2, 10, 1)]
    assert [drift.count for drift in drifts_of_first_slowest(*heads)] == [FEWEST, 10]


def test_modes_that_do_not_decay_are_passed_over() -> None:
    before, now = rates(3, 1, 6)
    now[0, 0], now[0, 1], before[0, 2] = 0.0, math.nan, -1.0
    (drift,) = drifts_of_first_slowest(before, now)
    assert drift.count == 3
    assert math.isfinite(drift.mean)
    assert drifts_of_first_slowest(before[:, :1], now[:, :1]) == ()


def test_learning_rates_say_what_they_do_at_the_end() -> None:
    assert schedule_of([1.0] * 8) is Schedule.STAYS
    assert schedule_of([3.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]) is Schedule.STAYS
    assert schedule_of([1.0] * 7 + [0.9]) is Schedule.FALLS
    assert schedule_of([1.0] * 6 + [0.9, 0.9]) is Schedule.FALLS
    assert schedule_of([0.1, 0.2]) is Schedule.RISES
    assert schedule_of([1.0, 0.5, 0.0]) is Schedule.ENDED


def test_the_integral_of_the_learning_rate_ends_at_the_last_step_in_steps_at_the_last_rate() -> None:
    steps = [0.0, 100, 300, 1000]
    assert steps_at_last_rate(steps, [2e-3] * 4) == pytest.approx(steps)
    falling = [1e-3 * (1 - step / 2000) for step in steps]
    exact = [
        1000 - np.trapezoid([rate, falling[-1]], [step, 1000]) / falling[-1]
        for rate, step in zip(falling, steps, strict=True)
    ]
    assert steps_at_last_rate(steps, falling) == pytest.approx(exact)
    assert steps_at_last_rate(steps, [1.0, 1.0, 1.0, 0.0]) is None
    assert steps_at_last_rate(steps, [1.0, 0.0, 0.0, 1.0]) is None


def save(path: Path, step: int, a_log: torch.Tensor, rate: float, other: float | None = None) -> None:
    """Write a training script's checkpoint: a Mamba, and an AdamW with A_log in a group of its own if `other`."""
    state = mamba({"0": a_log})
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    a = [value for name, value in parameters.items() if name.endswith("A_log")]
    b = [value for name, value in parameters.items() if not name.endswith("A_log")]
    groups = [{"params": [*a, *b]}] if other is None else [{"params": a}, {"params": b, "lr": other}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    sum(value.sum() for value in parameters.values()).backward()
    optimizer.step()
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "step": step}, path)


@pytest.mark.parametrize("other", [None, 0.5])
def test_the_learning_rate_is_that_of_the_group_which_holds_the_rates(tmp_path: Path, other: float | None) -> None:
    save(tmp_path / "x.pt", 3, base(), 1e-3, other)
    checkpoint = read_checkpoint(tmp_path / "x.pt")
    (recurrence,) = (r for layer in recognise(checkpoint).layers for r in layer.read())
    assert read_learning_rates(checkpoint).of(recurrence) == pytest.approx(1e-3)


def trained(tmp_path: Path, schedule: str) -> RunComparison:
    """Return a run whose first modes' A_log falls by the learning rate at every step."""
    shares = {"stays": lambda t: 1.0, "falls": lambda t: 1 - 0.8 * t, "ends": lambda t: 1 - t}
    rates = [1e-3 * shares[schedule](i / (len(STEPS) - 1)) for i in range(len(STEPS))]
    paths = []
    for i, (step, rate) in enumerate(zip(STEPS, rates, strict=True)):
        a_log = steady(step, "0")
        a_log[:, 0] -= float(np.trapezoid(rates[: i + 1], STEPS[: i + 1]))
        paths.append(tmp_path / f"step-{step}.pt")
        save(paths[-1], step, a_log, rate)
    return compare_run(paths, memory="none")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("stays", (Schedule.STAYS, None)),
        ("falls", (Schedule.FALLS, Unnamed.RATE_FALLS)),
        ("ends", (Schedule.ENDED, Unnamed.RATE_ENDED)),
    ],
)
def test_a_run_is_projected_along_its_learning_rate(
    tmp_path: Path, schedule: str, expected: tuple[Schedule, Unnamed | None]
) -> None:
    run = trained(tmp_path, schedule)
    (layer,) = run.layers
    assert layer.schedule is expected[0]
    if schedule != "ends":
        assert layer.verdict is Verdict.CONVERGING
    for limit in layer.limits:
        if limit.projection:
            assert limit.projection.unnamed is expected[1]
            assert (limit.projection.at is None) is (expected[1] is not None)
            rate = layer.last.rate
            assert rate is not None
            # At the last learning rate, and it was to fall further.
            meets = STEPS[-1] + math.log(rate.min / limit.rate) / (layer.last.learning_rate or math.inf)
            if limit.projection.not_before is not None:
                assert 0.9 * meets <= limit.projection.not_before <= meets * (1 + 1e-3)
            if limit.projection.at is not None:
                assert limit.projection.at == pytest.approx(meets, rel=0.02)


def test_a_mode_that_takes_the_lead_is_believed_by_its_own_path(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    steps = [1000 * i for i in range(16)]
    for step in steps:
        a_log = base()
        generator = torch.Generator().manual_seed(step)
        a_log += 0.003 * torch.randn(a_log.shape, generator=generator)
        a_log[5, 3] -= 2e-3 * step  # starts as one of the fastest, leads from step 1,000 on
        save_file(mamba({"0": a_log}), tmp_path / f"step-{step}.safetensors", metadata={"step": str(step)})
    run = compare_run(sorted(tmp_path.iterdir()), memory="none")
    (layer,) = run.layers
    assert layer.points[0].slowest_mode != layer.last.slowest_mode == 5 * 4 + 3
    assert layer.verdict is Verdict.CONVERGING
    # Without paths, one mode of a hundred says nothing about the others.
    blind = {"0": [replace(point, slowest_mode=i) for i, point in enumerate(layer.points)]}
    (unsure,), _ = judge_layers(blind, steps, "step", None, math.log(1.05))
    assert unsure.verdict is Verdict.UNDETERMINED
