"""Going on from the built-in model's checkpoint: its sizes, its function, maps that do not hold its rates."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssmdiag import diagnose
from ssmdiag.errors import CheckpointError, ConfigurationError, LayerError, MapError
from ssmdiag.recurrence.maps import find_map
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.results import ArmResult
from ssmdiag.retrain.starting_point import read_starting_point
from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task
from tests.retrain.small import compare_arms

BUDGET = Budget(6, 8, 6)


@pytest.fixture(scope="module")
def data() -> TaskData:
    return find_task("lf-exp").make(TaskSettings(length=12, samples=32))


@pytest.fixture(scope="module", params=["s4d", pytest.param("lru", marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, data: TaskData, tmp_path_factory: pytest.TempPathFactory) -> ArmResult:
    settings = ModelSettings(request.param, width=4, modes=3, depth=2)
    folder = tmp_path_factory.mktemp(request.param)
    return compare_arms([Arm("best", lr=0.05)], data, settings, BUDGET, task="lf-exp", folder=folder).arms[0]


def test_sizes_and_map_are_read_off_the_file(trained: ArmResult) -> None:
    start = read_starting_point(trained.checkpoints[-1])
    assert (start.settings.width, start.settings.modes, start.settings.depth) == (4, 3, 2)
    assert (start.map, start.step) == ("best", 6)


@pytest.mark.slow
def test_every_map_goes_on_from_the_function_that_was_left(trained: ArmResult, data: TaskData, tmp_path: Path) -> None:
    start = read_starting_point(trained.checkpoints[-1])
    arms = [Arm("best"), Arm("exp"), Arm("softplus", seed=1)]
    result = compare_arms(arms, data, start.settings, BUDGET, task="lf-exp", start=start, folder=tmp_path)
    for arm in result.arms:
        assert arm.history[0].loss == pytest.approx(trained.final_loss, rel=1e-5)
        with safe_open(arm.checkpoints[0], "pt") as file:
            assert file.metadata()["rate_map"] == arm.arm.param
        first, last = (
            diagnose(trained.checkpoints[-1], tails=False).layers,
            diagnose(arm.checkpoints[0], tails=False).layers,
        )
        assert [a.half_life.max for a in first] == pytest.approx([b.half_life.max for b in last], rel=1e-5)
    assert any("after 6 steps; seeds differ in their batches" in note for note in result.notes)


def test_the_same_map_keeps_every_bit(trained: ArmResult) -> None:
    start = read_starting_point(trained.checkpoints[-1])
    stored = load_file(trained.checkpoints[-1])
    assert all(value.equal(stored[name]) for name, value in start.weights("best").items())


def test_a_map_that_does_not_reach_names_one_that_does(trained: ArmResult, data: TaskData) -> None:
    start = read_starting_point(trained.checkpoints[-1])
    with pytest.raises(MapError, match=r"cannot hold \d+ of \d+ rates of .*step-6") as raised:
        start.require_fit([Arm("best(b=60)")], data)
    named = str(raised.value).rpartition("next: ")[2].partition(" reaches")[0]
    assert find_map(named).high > find_map("best(b=60)").high
    start.require_fit([Arm(named)], data)


def test_a_task_of_another_shape_is_told(trained: ArmResult) -> None:
    start = read_starting_point(trained.checkpoints[-1])
    with pytest.raises(ConfigurationError, match="1 features and 1 outputs; the task has 1 features and 3 outputs"):
        start.require_fit([Arm("best")], find_task("delay").make(TaskSettings(length=8, samples=4)))


def test_files_that_are_no_start_are_told(trained: ArmResult, tmp_path: Path) -> None:
    tensors = load_file(trained.checkpoints[-1])
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors \(weight, …\)"):
        read_starting_point(tmp_path / "other.safetensors")
    save_file(tensors, tmp_path / "unnamed.safetensors")
    with pytest.raises(CheckpointError, match="the map of its rates"):
        read_starting_point(tmp_path / "unnamed.safetensors")
    tensors["decoder.bias"][0] = math.nan
    save_file(tensors, tmp_path / "nan.safetensors", {"rate_map": "best"})
    with pytest.raises(LayerError, match=r"hold NaN: decoder\.bias"):
        read_starting_point(tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_starting_point(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"decoder.bias": None}, r"1 of \d+ tensors do not fit: no decoder\.bias"),
        ({"encoder.bias": None}, r"1 of \d+ tensors do not fit: no encoder\.bias"),
        ({"encoder.weight": (5, 1)}, r"encoder\.weight \(5, 1\), not \(4, 1\)"),
        ({"encoder.weight": (4,)}, r"encoder\.weight has shape \(4,\)"),
        ({"decoder.weight": (0, 4)}, r"decoder\.weight has shape \(0, 4\)"),
        ({"mixers.1.weight": (8, 3), "norms.0.bias": None}, r"2 of \d+ tensors do not fit: no norms"),
    ],
)
def test_a_damaged_start_says_what_is_there_and_what_should_be(
    damage: dict[str, tuple[int, ...] | None], message: str, trained: ArmResult, tmp_path: Path
) -> None:
    tensors = load_file(trained.checkpoints[-1])
    for name, shape in damage.items():
        del tensors[name]
        if shape is not None:
            tensors[name] = torch.ones(shape)
    save_file(tensors, tmp_path / "damaged.safetensors", {"rate_map": "best"})
    with pytest.raises(CheckpointError, match=message):
        read_starting_point(tmp_path / "damaged.safetensors")


def test_a_start_without_its_first_layer_is_told(trained: ArmResult, tmp_path: Path) -> None:
    tensors = {name: value for name, value in load_file(trained.checkpoints[-1]).items() if "_layers.0." not in name}
    save_file(tensors, tmp_path / "damaged.safetensors", {"rate_map": "best"})
    with pytest.raises(CheckpointError, match=r"_layers\.0\..* is not there"):
        read_starting_point(tmp_path / "damaged.safetensors")
