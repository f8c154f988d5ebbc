"""What drifts to NaN is warned of at least one reading before; what only wanders is not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch

from ssmdiag import Watch
from ssmdiag.watching.alarm import Alarm
from ssmdiag.watching.outlook import arrival
from ssmdiag.watching.reading import LayerReading
from tests.watching.drifting import Pushed, build, overflows, rounds_to_one

FOLLOWED = (
    "mamba:state-spaces/mamba, transformers, mambapy, fla",  # exp
    "s5:lindermanlab/S5",  # the rate itself
    "rg_lru:transformers",  # softplus
    "gla:fla, GLA",  # −logsigmoid
    "rwkv7:BlinkDL/RWKV-LM",  # sigmoid
    "mega:facebookresearch/mega",  # 1 − a product of two sigmoids
    "curse_of_memory:radarFudan/Curse-of-memory, one unit per mode",  # relu
    "mamba3:state-spaces/mamba, fla",  # the step alone
    "lru:minimal-LRU, lrnnx",
    "s4d:state-spaces/s4 v4, SSMKernelDiag",
    "gated_delta_net:NVlabs/GatedDeltaNet",
    "stablessm:radarFudan/StableSSM",
)
"""A spelling of each kind of map."""
SHAPES: dict[str, Callable[[int], float]] = {
    "slow": lambda n: 0.3 * n,
    "fast": lambda n: 2.0 * n,
    "doubling": lambda n: 0.01 * 2.0**n,
    "tenfold": lambda n: 0.001 * 10.0**n,
}
LINEAR_SHAPES: dict[str, Callable[[int], float]] = {"slow": lambda n: 0.01 * n, "doubling": lambda n: 0.002 * 2.0**n}
"""Of a weight that is the rate itself, between 0.1 and 1."""


def readings_of_warning_and_end(
    pushed: Pushed, shape: Callable[[int], float], when: Callable[[torch.Tensor], bool]
) -> tuple[int, int]:
    """Return the readings at which the first warning came and the model was NaN."""
    said: list[str] = []
    watch = Watch(pushed.model, every=1, laws_every=0, warn=said.append)
    first = None
    for n in range(1000):
        pushed.by(shape(n))
        pushed.breaks(when)
        reading = watch.step(n)
        assert reading is not None
        assert said[len(said) - len(reading.warnings) :] == list(reading.warnings)
        if said and first is None:
            first = n
        if reading.broken:
            assert first is not None
            return first, n
    raise AssertionError("it did not break")


@pytest.mark.one_in(27)
@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_drift_to_a_decay_of_one_is_warned_of_before_nan(name: str, shape: str) -> None:
    pushed = Pushed(build(name))
    if pushed.linear and shape not in LINEAR_SHAPES:
        shape = "slow"  # from 0.1 it would be at 0 within three readings
    first, end = readings_of_warning_and_end(pushed, (LINEAR_SHAPES if pushed.linear else SHAPES)[shape], rounds_to_one)
    assert first < end


@pytest.mark.one_in(9)
@pytest.mark.parametrize("shape", ["doubling", "fast", "tenfold"])
@pytest.mark.parametrize("name", [FOLLOWED[0], "lru:minimal-LRU, lrnnx", "s4d:state-spaces/s4 v4, SSMKernelDiag"])
def test_a_drift_to_an_infinite_rate_is_warned_of_before_nan(name: str, shape: str) -> None:
    first, end = readings_of_warning_and_end(Pushed(build(name), faster=True), SHAPES[shape], overflows)
    assert first < end


def layer(name: str = "a", margin: float = 0.01, *, linear: bool = False, nonfinite: int = 0) -> LayerReading:
    rate = -math.log1p(-margin) if margin < 1 else math.nan
    return LayerReading(
        name, math.nan if nonfinite else margin, 1.0, 0.0, nonfinite, 8, rate, 30.0, 3e38, linear
    )  # fmt: skip


def hear(margins: list[float], *, limit: float = 1e-6, linear: bool = False) -> list[list[str]]:
    alarm = Alarm(limit)
    return [alarm.hear(100 * n, [layer(margin=margin, linear=linear)]) for n, margin in enumerate(margins)]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_a_healthy_noisy_run_is_not_warned_of(noise: float, seed: int) -> None:
    """24 layers of which half wander, half return to where they were; Adam moves a log rate by 0.1 in 100 steps."""
    draw, alarm = random.Random(seed), Alarm(1e-6)
    levels = [math.log(0.001 * (1 + n)) for n in range(24)]
    at = list(levels)
    for step in range(150):
        for n, level in enumerate(levels):
            pull = 0.2 * (level - at[n]) if n % 2 else 0.0
            at[n] = min(max(at[n] + pull + draw.gauss(0, noise), math.log(1e-5)), -0.1)
        assert alarm.hear(step, [layer(str(n), math.exp(at[n])) for n in range(24)]) == []


def test_each_state_is_said_once_and_again_after_a_calm() -> None:
    said = hear([0.01, 0.01, 1e-7, 1e-8, 1e-7, *[0.01] * 9, 1e-7, *[0.01] * 10, 1e-7])
    assert [n for n, sentences in enumerate(said) if sentences] == [2, 25]
    assert said[2][0].startswith("step 200: a is 1e-07 from the stability boundary (limit 1e-06)")


def test_worse_states_are_said_after_others() -> None:
    said = hear([0.01, 1e-7, -1e-3, -1e-3])
    assert [len(sentences) for sentences in said] == [0, 1, 1, 0]
    assert "grows with every step, by a factor of 1 + 0.001" in said[2][0]


def test_layers_with_one_state_are_told_of_in_one_sentence() -> None:
    alarm = Alarm(1e-6)
    alarm.hear(0, [layer(str(n)) for n in range(9)])
    (sentence,) = alarm.hear(100, [layer(str(n), nonfinite=3) for n in range(9)])
    assert sentence == "step 100: 3 of 8 modes of 0 are NaN or infinite. The same: 1, 2, 3 and 5 more."


def test_a_layer_at_the_boundary_from_the_start_is_not_told_of_until_it_grows() -> None:
    said = hear([0.0, -1e-16, 1e-16, 0.0, -1e-3])
    assert [len(sentences) for sentences in said] == [0, 0, 0, 0, 1]


def test_a_rate_that_is_a_weight_itself_is_foreseen_to_cross() -> None:
    margins = [0.1 - 0.01 * n for n in range(8)]
    assert not any(hear(margins))
    told = hear(margins, linear=True)
    assert [n for n, sentences in enumerate(told) if sentences] == [6]
    assert "at this pace is under 1e-06 by step 990" in told[6][0]


def test_hostile_names_are_escaped() -> None:
    alarm = Alarm(1e-6)
    (sentence,) = alarm.hear(0, [layer("a\x1b[31m\nb", nonfinite=1)])
    assert "\x1b" not in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 0.9], None),
        ([1.0], None),
        ([1.0, 2.0, 3.0, 4.0], None),
        ([4.0, 3.0, 2.0, math.nan], None),
        ([math.nan, 4.0, 3.0, 2.0], None),
        ([9.0, 4.0, 3.0, 2.0, 1.0], 4.0 + 1.0),
        ([9.0, 9.0, 9.0, 9.0, 9.0, 4.4], 5.0 + 4.4 / 4.6),
        ([0.0, 4.0, 0.0, 9.0, 9.0, 9.0, 4.4], None),
    ],
)
def test_arrival(values: list[float], expected: float | None) -> None:
    found = arrival(range(len(values)), values, 0.0)
    assert found == pytest.approx(expected)


def test_arrival_goes_by_the_step_and_not_by_the_number_of_readings() -> None:
    assert arrival([0, 10, 11, 31], [31.0, 21.0, 20.0, 1.0], 0.0) == pytest.approx(31 + 20 / 19)
