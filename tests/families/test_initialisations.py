"""Where steps start: the range a model's settings give, and the weights it applies to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmdiag import read_checkpoint, recognise
from ssmdiag.families.initialisations import USUAL_STEP, log_uniform_step, usual_step
from tests.rules.healthy import ARCHITECTURES, initial_state, save

Write = Callable[..., Path]


def first_layer(name: str, directory: Path, config: dict[str, Any]) -> Any:
    checkpoint = read_checkpoint(save(directory / name, initial_state(name), config))
    return recognise(checkpoint).layers[0]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, USUAL_STEP),
        ({"time_step_min": 0.01, "time_step_max": 0.2}, (0.01, 0.2)),
        ({"ssm_cfg": {"dt_min": 1e-4, "dt_max": 0.1}}, (1e-4, 0.1)),
        ({"time_step_max": 0.5}, (1e-3, 0.5)),
        ({"time_step_min": 0.5, "time_step_max": 0.1}, USUAL_STEP),
        ({"time_step_min": None, "time_step_max": "large"}, USUAL_STEP),
        ({"time_step_min": 0.0, "time_step_max": float("inf")}, USUAL_STEP),
        ({"time_step_min": True}, USUAL_STEP),
    ],
)
def test_settings_give_the_range_where_they_are_two_numbers(
    config: dict[str, Any], expected: tuple[float, float], tmp_path: Path
) -> None:
    assert usual_step(first_layer("mamba2", tmp_path, config)) == expected


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_fresh_steps_of_every_family_lie_in_the_range_it_is_held_against(name: str, tmp_path: Path) -> None:
    from ssmdiag.recurrence.maps import MAPS

    layer = first_layer(name, tmp_path, dict(ARCHITECTURES[name].config))
    for recurrence in layer.read():
        weight = log_uniform_step(recurrence)
        if weight is not None:
            step = MAPS[weight.map](weight.values)
            assert float(step.min()) >= USUAL_STEP[0] * (1 - 1e-5)
            assert float(step.max()) <= USUAL_STEP[1] * (1 + 1e-2), "typeseg's class adds 1e-4"


@pytest.mark.parametrize(
    ("name", "has"),
    [("mamba", True), ("s5", True), ("kda", True), ("lru", False), ("linoss", False), ("retnet", False)],
)
def test_families_without_a_log_uniform_step_have_none_to_hold(name: str, has: bool, tmp_path: Path) -> None:
    layer = first_layer(name, tmp_path, dict(ARCHITECTURES[name].config))
    assert (log_uniform_step(layer.read()[0]) is not None) is has
