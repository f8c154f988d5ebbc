"""Retention and half-lives of clocks whose answers are known in closed form, or by stepping every state."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch import Tensor

from ssmdiag.errors import LayerError
from ssmdiag.probing import retention
from ssmdiag.probing.retention import HalfLives, RetentionMeter, half_life_quantiles, spread_channels
from ssmdiag.recurrence.clock import Clock
from tests.probing.measured import drawn, measured
from tests.tolerances import RELATIVE

EXACT = RELATIVE["float64"]


def stepped(step: Tensor, rate: Tensor, at: list[int], lags: list[int]) -> Tensor:
    """Return what is left at each position of a state that was 1 so many steps before, mean over positions and modes:
    every state is multiplied by every token's decay, one after another, (channel, lag)."""
    found = torch.zeros(rate.shape[0], len(lags), dtype=torch.float64)
    for batch in range(len(step)):
        for end in at:
            for k, lag in enumerate(lags):
                state = torch.ones_like(rate)
                for token in range(end - lag, end):
                    state = state * torch.exp(-step[batch, token][:, None] * rate)
                found[:, k] += state.mean(1)
    return found / (len(step) * len(at))


def test_retention_equals_that_of_stepped_states() -> None:
    step, rate = drawn(2, 24, 3, 2)
    found = measured(step, rate=rate, positions=4)
    assert found.lags.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
    expected = stepped(step, rate, [12, 16, 20, 24], found.lags.tolist())
    torch.testing.assert_close(found.by_channel, expected, rtol=EXACT, atol=0)
    torch.testing.assert_close(found.mean, expected.mean(0), rtol=EXACT, atol=0)


def test_a_constant_clock_has_the_half_lives_of_its_rates() -> None:
    rate = torch.tensor([[0.02, 0.5], [0.03, 7.0], [0.01, 1.0]], dtype=torch.float64)
    step = torch.full((2, 512, 3), 0.9, dtype=torch.float64)
    found = measured(step, rate=rate)
    lives = (math.log(2) / (0.9 * rate)).flatten().sort().values
    assert found.half_life.min == pytest.approx(float(lives[0]), rel=1e-11)
    assert found.half_life.max == pytest.approx(float(lives[-1]), rel=1e-11)
    assert found.half_life.median in [pytest.approx(float(value), rel=1e-11) for value in lives[2:4]]
    assert found.half_life.at_least == ()
    assert found.censored == 0
    expected = torch.exp(-0.9 * rate[..., None] * found.lags).mean(1)
    torch.testing.assert_close(found.by_channel, expected, rtol=EXACT, atol=0)


def test_an_alternating_clock_is_forgotten_while_it_runs() -> None:
    """Δ is 1 at even tokens and 0 at odd ones: of r = ln 2 / 3 half is gone once three even tokens have passed."""
    step = torch.zeros(1, 64, 1, dtype=torch.float64)
    step[:, ::2] = 1.0
    found = measured(step, rate=[[math.log(2) / 3]], positions=33)
    # Before an odd token the last step was 1: tokens t−1, t−3 and t−5. Before an even one: t−2, t−4 and t−6.
    assert found.half_life.min == pytest.approx(5.0, abs=1e-9)
    assert found.half_life.max == pytest.approx(6.0, abs=1e-9)
    by_lag = dict(zip(found.lags.tolist(), found.mean.tolist(), strict=True))
    assert by_lag[2] == pytest.approx(2 ** (-1 / 3), rel=1e-14)
    assert by_lag[16] == pytest.approx(2 ** (-8 / 3), rel=1e-14)


def test_a_half_life_is_where_half_is_left_in_many_digits() -> None:
    step, rate = drawn(1, 60, 1, 1, seed=5)
    found = measured(step, rate=rate, positions=1)
    assert found.half_life.min == found.half_life.max
    with mpmath.workdps(40):
        passed, left = mpmath.mpf(0), mpmath.log(2) / mpmath.mpf(float(rate))
        lag = mpmath.mpf(0)
        for token in reversed(range(30)):  # one position: the middle of the text
            delta = mpmath.mpf(float(step[0, token, 0]))
            if passed + delta >= left:
                lag += (left - passed) / delta
                break
            passed, lag = passed + delta, lag + 1
    assert found.half_life.max == pytest.approx(float(lag), rel=1e-12)


def test_batches_and_texts_one_by_one_measure_the_same() -> None:
    step, rate = drawn(6, 100, 5, 2)
    whole, parts = measured(step, rate=rate), measured(*step.split(1), rate=rate)
    torch.testing.assert_close(whole.by_channel, parts.by_channel, rtol=EXACT, atol=0)
    assert whole.half_life == parts.half_life
    assert (whole.censored, whole.reset, whole.hold) == (parts.censored, parts.reset, parts.hold)
    assert whole.tokens == parts.tokens == 600


def test_nothing_kept_grows_with_the_number_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_VALUES", 200)
    meter = RetentionMeter("layer")
    lives = []
    for seed in range(40):
        step, _ = drawn(1, 200, 2, 2, seed)
        meter.add(Clock(step, torch.tensor([[0.1, 1.0], [0.2, 2.0]], dtype=torch.float64)))
        lives.append(measured(step, rate=[[0.1, 1.0], [0.2, 2.0]]).half_life.median)
        assert sum(part.numel() for part in meter._kept) <= 200
    found = meter.result()
    assert len(found.blocks) == retention.MOST_BLOCKS
    assert float(found.positions.sum()) == 40 * 101
    assert found.modes == 2
    # Of 4,040 positions 32 or so are kept: the median stays near the mean of the texts' own.
    assert found.half_life.median == pytest.approx(sum(lives) / len(lives), rel=0.25)


def test_of_many_half_lives_those_at_every_second_position_are_kept_then_every_fourth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MOST_VALUES", 100)
    meter, rows = RetentionMeter("layer", positions=9), []
    rate = torch.tensor([[0.1, 1.0]], dtype=torch.float64)
    for seed in range(25):
        step, _ = drawn(1, 40, 1, 2, seed)
        meter.add(Clock(step, rate))
        at = torch.linspace(20, 40, 9, dtype=torch.float64).round().long()
        rows.append(retention.half_lives(retention.cumulate(step), rate, at)[0].flatten(0, 1))
    assert meter._every == 8
    assert torch.equal(torch.cat(meter._kept), torch.cat(rows)[::8])


@pytest.mark.parametrize("time", [1, 2, 3])
def test_a_text_of_few_tokens_has_what_it_has(time: int) -> None:
    found = measured(torch.full((1, time, 1), 10.0), rate=[[1.0]])
    assert found.lags.tolist() == [0, 1]
    assert found.mean.tolist() == pytest.approx([1.0, math.exp(-10)], rel=1e-12)
    assert found.half_life.max == pytest.approx(math.log(2) / 10, rel=1e-6)
    assert found.reset == 1.0


def test_a_clock_that_stands_still_keeps_all_and_its_half_life_is_longer_than_the_text() -> None:
    found = measured(torch.zeros(2, 100, 3), rate=[[1.0, 2.0]] * 3)
    assert found.mean.tolist() == [1.0] * len(found.lags)
    assert found.censored == 1.0
    assert found.half_life.min == 50
    assert found.half_life.max == 100
    assert found.half_life.at_least == ("min", "p05", "median", "p95", "p99", "max")
    assert (found.reset, found.hold) == (0.0, 1.0)


def test_a_rate_of_zero_never_forgets_whatever_the_input() -> None:
    found = measured(torch.ones(1, 100, 2), rate=[[0.0], [1.0]])
    assert found.half_life.max == math.inf
    assert "max" not in found.half_life.at_least, "it is infinite, not longer than something"
    assert found.half_life.min == pytest.approx(math.log(2), rel=1e-12)
    assert (found.reset, found.hold) == (0.5, 0.5)
    assert found.by_channel[0].tolist() == [1.0] * len(found.lags)


@pytest.mark.parametrize("past", [0.25, 1.5, 3.5])
def test_a_half_life_may_end_within_any_step_and_within_the_first_of_the_text(past: float) -> None:
    found = measured(torch.ones(1, 4, 1, dtype=torch.float64), rate=[[math.log(2) / past]], positions=3)
    assert found.half_life.max == pytest.approx(past, rel=1e-12)


def test_a_large_step_of_a_slow_mode_is_no_reset() -> None:
    step = torch.full((1, 64, 1), 5000.0, dtype=torch.float64)
    found = measured(step, rate=[[1e-4]])
    torch.testing.assert_close(found.mean, torch.exp(-0.5 * found.lags.double()), rtol=EXACT, atol=0)


@pytest.mark.parametrize("large", [1e4, 1e30, math.inf])
def test_a_huge_step_resets_and_leaves_what_follows_exact(large: float) -> None:
    step = torch.full((1, 64, 1), 0.25, dtype=torch.float64)
    step[:, 32] = large
    found = measured(step, rate=[[0.1]], positions=33)
    assert found.reset == pytest.approx(1 / 64)
    at = torch.arange(32, 65)
    # All that was written before token 32 is gone after it.
    for lag, left in zip(found.lags.tolist(), found.mean.tolist(), strict=True):
        spared = (at <= 32) | (at - lag > 32)
        assert left == pytest.approx(float(spared.double().mean()) * math.exp(-0.025 * lag), rel=1e-12)


def test_censored_half_lives_bound_the_quantiles_they_reach() -> None:
    values = torch.arange(1.0, 101.0, dtype=torch.float64)
    found = half_life_quantiles(values, values > 96)
    assert found == HalfLives(1.0, 6.0, 51.0, 95.0, 99.0, 100.0, ("p99", "max"))


def test_the_share_of_half_lives_longer_than_their_past_is_counted() -> None:
    """r Δ = ln 2 / 75: the positions up to the 74th have not seen half of it go, those from 75 to 100 have."""
    found = measured(torch.ones(1, 100, 1, dtype=torch.float64), rate=[[math.log(2) / 75]], positions=51)
    assert found.censored == 25 / 51
    assert found.half_life.max == pytest.approx(75, rel=1e-12)
    assert "max" in found.half_life.at_least


def test_reset_and_hold_count_every_channel_by_its_slowest_mode() -> None:
    step = torch.zeros(1, 10, 100, dtype=torch.float64)
    step[:, 0], step[:, 1] = 0.7, 0.02
    found = measured(step, rate=[[1.0, 50.0]] * 100, channels=3)
    assert found.reset == pytest.approx(0.1)
    assert found.hold == pytest.approx(0.8)
    assert len(found.sampled) == 3
    assert found.channels == 100


def test_channels_are_sampled_evenly_over_their_order_and_the_extremes_count_no_more() -> None:
    slowness = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    picks = spread_channels(slowness, 7)
    rank = slowness.argsort().argsort()[picks].sort().values
    assert rank.tolist() == [35, 107, 178, 250, 321, 392, 464]
    assert spread_channels(slowness, 500).tolist() == list(range(500))


def test_channels_alike_in_rate_are_sampled_by_their_half_life_at_rest() -> None:
    """Mamba's rates start alike in all channels: Δ makes them differ."""
    at_rest = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    meter = RetentionMeter("layer", channels=3, at_rest=at_rest)
    meter.add(Clock(torch.ones(1, 8, 300, dtype=torch.float64), torch.ones(300, 1, dtype=torch.float64)))
    assert at_rest.argsort().argsort()[meter.result().sampled].sort().values.tolist() == [50, 150, 250]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_time_is_added_up_in_float64_whatever_the_model_computes_in(dtype: torch.dtype) -> None:
    step = torch.full((1, 4096, 1), 0.1, dtype=dtype)
    exact = float(step[0, 0, 0])
    found = measured(step, rate=[[0.01]])
    torch.testing.assert_close(found.mean, torch.exp(-0.01 * exact * found.lags.double()), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (torch.tensor([0.1, 0.2, math.nan, 0.1])[None, :, None], "layers.3: its step is NaN from token 2 on"),
        (torch.tensor([0.1, -0.2, 0.3, 0.1])[None, :, None], "layers.3: its step is negative, -0.2"),
        (torch.zeros(1, 4, 2), "step of shape"),
        (torch.zeros(1, 0, 1), "step of shape"),
    ],
)
def test_a_clock_that_is_none_is_an_error_of_its_layer(step: Tensor, said: str) -> None:
    with pytest.raises(LayerError, match=said):
        RetentionMeter("layers.3").add(Clock(step, torch.ones(1, 1)))


def test_texts_of_another_length_and_none_at_all_are_refused() -> None:
    meter = RetentionMeter("layers.3")
    with pytest.raises(LayerError, match="not seen a text"):
        meter.result()
    meter.add(Clock(torch.zeros(1, 8, 1), torch.ones(1, 1)))
    with pytest.raises(LayerError, match="a text of 9 steps follows texts of 8"):
        meter.add(Clock(torch.zeros(1, 9, 1), torch.ones(1, 1)))
