"""How long retraining takes is told once it is known."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from ssmdiag.cli import training_watch
from ssmdiag.cli.training_watch import Clock, Watch
from ssmdiag.retrain import training
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.training import Progress

FIRST, SECOND = (Arm("exp"), Arm("best")), (Arm("relu"), Arm("direct"))


def progress(step: int, arms: tuple[Arm, ...] = FIRST, steps: int = 1000) -> Progress:
    return Progress(step, steps, arms, tuple(0.5 for _ in arms))


def test_the_whole_is_the_time_of_a_step_times_all_steps_of_all_arms() -> None:
    clock = Clock(4)
    clock.take(progress(0), 100.0)
    clock.take(progress(20), 102.0)  # 0.05 s a step of one arm
    assert clock.step_seconds == pytest.approx(0.05)
    assert clock.total == pytest.approx(0.05 * 4 * 1000)
    assert clock.left == pytest.approx(0.05 * 4 * 1000 - 2)


def test_a_second_group_is_timed_by_itself_and_the_first_counts_as_done() -> None:
    clock = Clock(4)
    clock.take(progress(0), 0.0)
    clock.take(progress(1000), 100.0)
    assert clock.left == pytest.approx(100.0)
    clock.take(progress(0, SECOND), 101.0)
    clock.take(progress(500, SECOND), 151.0)
    assert clock.left == pytest.approx(50.0)
    assert clock.total == pytest.approx(201.0)


def test_a_resumed_run_is_timed_from_where_it_goes_on() -> None:
    clock = Clock(2)
    clock.take(progress(900), 0.0)
    clock.take(progress(920), 2.0)
    assert clock.left == pytest.approx(8.0)


def lines(seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a log has of 100 of 1,000 steps that take so long each."""
    time = SimpleNamespace(now=0.0)
    monkeypatch.setattr(training_watch.time, "monotonic", lambda: time.now)
    watch = Watch(quiet=False, arms=2)
    for step in (0, 20, 50, 100):
        time.now = seconds * step
        watch.update(progress(step))
    return capsys.readouterr().err.splitlines()


def test_a_log_has_one_line_with_the_price(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(0.1, monkeypatch, capsys) == [
        "2 arms of 1,000 steps at 50 ms a step: about 2 min in all, 98 s left; --steps or fewer arms shorten it"
    ]


def test_a_short_run_says_nothing_and_a_long_one_goes_on_telling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lines(0.01, monkeypatch, capsys) == []
    price, *later = lines(0.6, monkeypatch, capsys)
    assert price.startswith("2 arms")
    assert [line.partition(":")[0] for line in later] == [
        "step 50 of 1,000, about 10 min left",
        "step 100 of 1,000, about 9 min left",
    ]


def test_the_bar_has_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(2)
    clock.take(progress(0), 0.0)
    assert training_watch._picture(progress(0), clock).splitlines()[0].endswith("step 0 of 1,000")
    clock.take(progress(20), 2.0)
    assert training_watch._picture(progress(20), clock).splitlines()[0].endswith("step 20 of 1,000, about 98 s left")


def test_both_modules_agree_on_when() -> None:
    assert training_watch.PRICED_AFTER == training.PRICED_AFTER


def test_a_run_is_priced_after_twenty_steps(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_watch, "WORTH_TELLING", 0.0)
    small = ("--batch", 2, "--width", 2, "--modes", 2, "--samples", 4, "--length", 16, "--no-plots")
    code, _, errors = run("retrain", "--task", "lf-exp", "--steps", 500, *small)
    assert code == 0
    assert errors.count("2 arms of 500 steps at ") == 1
    assert run("retrain", "--task", "lf-exp", "--steps", 19, *small)[2].count("in all") == 0
    assert not sys.stderr.isatty()
