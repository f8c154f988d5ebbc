"""Arms: every combination once, under names that do not collide."""

from __future__ import annotations

import pytest

from ssmdiag.errors import ConfigurationError, MapError
from ssmdiag.retrain.arms import LARGEST_SEED, Arm, Budget, product_of
from tests.retrain.small import model, task, train


def test_a_product_has_every_combination_once_in_order() -> None:
    arms = product_of(param=["exp", "best", "exp"], lr=[0.1, 0.01], seed=[0, 1], freeze=["none", "both"])
    assert len(arms) == len(set(arms)) == 16
    assert arms[0] == Arm("exp", lr=0.1)
    assert [arm.param for arm in arms] == ["exp"] * 8 + ["best"] * 8


def test_a_map_written_in_two_ways_is_one_arm() -> None:
    arms = product_of(param=["best", "best(b=0.5)", "best(a=1,b=0.5)", "best(1, 0.1)", "best(b=0.1)"])
    assert [arm.param for arm in arms] == ["best", "best(b=0.1)"]


def test_labels_differ_wherever_arms_do() -> None:
    arms = product_of(
        param=["exp", "best", "best(b=0.1)"], freeze=["none", "step"], init=["family", "long"], seed=[0, 10],
        lr=[0.1234567, 0.1234568, 1e-5, 1.0], recurrence_lr=[None, 0.0, 1e-5], weight_decay=[0.0, 1e-5],
    )  # fmt: skip
    assert len({arm.label for arm in arms}) == len(arms)
    assert Arm("exp").label == "exp-lr0.01-seed0"
    assert not any(set(arm.label) & set("/\\ \t:") for arm in arms)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"freeze": ["all"]}, "--freeze all"),
        ({"init": ["random"]}, "--init random"),
        ({"lr": [-0.1]}, "--lr -0.1"),
        ({"lr": [0.0]}, "--lr 0.0"),
        ({"lr": [0.1, -0.0]}, "--lr -0.0"),
        ({"lr": [1e-46]}, "--lr 1e-46"),
        ({"lr": [1e39]}, "--lr 1e+39"),
        ({"lr": [float("inf")]}, "--lr inf"),
        ({"weight_decay": [float("nan")]}, "--weight-decay nan"),
        ({"lr": [float("nan")]}, "--lr nan"),
        ({"recurrence_lr": [float("inf")]}, "--recurrence-lr inf"),
        ({"weight_decay": [-1.0]}, "--weight-decay -1"),
        ({"seed": [0, -1]}, "--seed -1"),
        ({"seed": [2**63 - 1]}, "--seed 9223372036854775807"),
        ({"seed": [99999999999999999999]}, "--seed 99999999999999999999"),
    ],
)
def test_a_value_no_arm_can_have_is_named(given: dict, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        product_of(param=["exp"], **given)
    assert says in caught.value.seen
    assert caught.value.expected


@pytest.mark.parametrize("name", ["lr", "seed", "recurrence_lr", "weight_decay"])
def test_a_number_given_twice_is_refused(name: str) -> None:
    option = f"--{name.replace('_', '-')} 1"
    with pytest.raises(ConfigurationError, match=f"{option} is given twice"):
        product_of(param=["exp"], **{name: [1, 2, 1]})  # type: ignore[arg-type]


def test_an_unknown_map_is_refused() -> None:
    with pytest.raises(MapError, match="no map is called 'tanh'"):
        product_of(param=["exp", "tanh"])


def test_the_largest_seed_trains() -> None:
    (arm,) = product_of(param=["exp"], seed=[LARGEST_SEED])
    (result,) = train([arm], task(), model(), Budget(2, 64, 2))
    assert result.final_loss is not None
