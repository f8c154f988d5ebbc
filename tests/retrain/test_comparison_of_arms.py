"""What a comparison of arms says beside the losses: memory, what cannot be frozen, what the budget could not give."""

from __future__ import annotations

import pytest

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.sources import function_source
from ssmdiag.retrain.user_code import read_data
from tests.retrain.small import BUDGET, compare_arms, compare_modules, model, task

GIVEN = "tests.retrain.given_models"


def test_no_steps_leave_the_memory_as_it_was() -> None:
    (arm,) = compare_arms([Arm("exp")], task(), model(), Budget(0, 8, 1), task="t").arms
    assert arm.after
    assert arm.after == arm.before


@pytest.mark.slow
def test_an_arm_that_diverged_before_its_second_checkpoint_has_no_memory_after() -> None:
    (arm,) = compare_arms([Arm("direct", lr=1e9)], task(), model(), BUDGET, task="t").arms
    assert arm.diverged_at is not None
    assert arm.before
    assert not arm.after


def test_a_step_that_is_not_there_cannot_be_frozen() -> None:
    arms = [Arm("exp"), Arm("exp", freeze="step")]
    with pytest.raises(ConfigurationError, match="--freeze step: LRU has no weight that decides its step"):
        compare_arms(arms, task(), model("lru"), BUDGET, task="t")
    compare_arms([Arm("exp", freeze="both")], task(), model("lru"), Budget(1, 8, 1), task="t")


def test_a_batch_larger_than_the_data_is_noted() -> None:
    few = "--batch 128: there are 64 training sequences, and every step takes all of them"
    assert few in compare_arms([Arm("exp")], task(), model(), Budget(1, 128, 1), task="t").notes
    assert compare_arms([Arm("exp")], task(), model(), Budget(1, 64, 1), task="t").notes == ()
    source, data = function_source(f"{GIVEN}:regressor"), read_data(f"{GIVEN}:pairs", 30)
    result = compare_modules([Arm(OWN)], source, data, Budget(1, 30, 1), task="t")
    assert "--batch 30: there are 22 training sequences, and every step takes all of them" in result.notes
