"""The folder of a run: never two runs in one, and looked at before anything is trained."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import OWN, Arm, Budget
from ssmdiag.retrain.results import RetrainResult
from ssmdiag.retrain.run_folder import STATE, can_resume, require_apart
from ssmdiag.retrain.saving import advice_for
from ssmdiag.retrain.sources import function_source
from ssmdiag.retrain.user_code import read_data
from tests.retrain.small import compare_arms, compare_modules, model, task

GIVEN = "tests.retrain.given_models"
Compare = Callable[..., RetrainResult]


def built_in(steps: int, folder: Path, **settings: Any) -> RetrainResult:
    budget = Budget(steps, 8, 2)
    return compare_arms([Arm("exp")], task(), model(), budget, task="lf-poly", folder=folder, **settings)


def given(steps: int, folder: Path, **settings: Any) -> RetrainResult:
    source, data = function_source(f"{GIVEN}:regressor"), read_data(f"{GIVEN}:pairs", 8)
    return compare_modules([Arm(OWN)], source, data, Budget(steps, 8, 2), task="pairs", folder=folder, **settings)


both = pytest.mark.parametrize("compare", [built_in, given])


@pytest.mark.one_in(2)
@both
def test_a_folder_with_a_run_takes_no_other_and_is_left_as_it_is(compare: Compare, tmp_path: Path) -> None:
    compare(2, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trained: list[Any] = []
    with pytest.raises(ConfigurationError, match=r"holds a run already: .* has step-0.safetensors to step-2") as raised:
        compare(20, tmp_path, on_progress=trained.append)
    assert "--resume" in str(raised.value.advice)
    assert not trained
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.one_in(2)
@both
def test_resuming_goes_on_with_the_run_without_a_remark(compare: Compare, tmp_path: Path) -> None:
    first = compare(2, tmp_path)
    again = compare(2, tmp_path, resume=True)
    assert again.arms[0].history == first.arms[0].history
    assert again.notes == first.notes


@pytest.mark.one_in(2)
@both
def test_resuming_where_there_is_no_state_says_that_it_starts_anew(compare: Compare, tmp_path: Path) -> None:
    assert f"nothing to resume from in {tmp_path}: started anew" in compare(1, tmp_path, resume=True).notes


@pytest.mark.one_in(2)
@both
def test_checkpoints_without_a_state_are_not_replaced_by_a_run_that_begins_anew(
    compare: Compare, tmp_path: Path
) -> None:
    compare(12, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    for state in tmp_path.glob(f"state-*{STATE}"):
        state.unlink()
    with pytest.raises(ConfigurationError, match=r"has no state to go on from, but .* has step-00") as raised:
        compare(10, tmp_path, resume=True)
    assert "another --output" in str(raised.value.advice)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")} == before


@both
@pytest.mark.parametrize("place", ["file", "file/run"])
def test_an_output_that_cannot_be_a_folder_is_said_before_anything_is_trained(
    compare: Compare, place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    trained: list[Any] = []
    with pytest.raises(ConfigurationError, match="cannot be written") as raised:
        compare(2, tmp_path / place, on_progress=trained.append)
    assert raised.value.advice == "give another --output."
    assert not trained


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "make room and give --resume"), (errno.EROFS, "write permission"), (errno.EISDIR, "another")],
)
def test_the_advice_is_that_of_the_error(number: int, advice: str) -> None:
    assert advice in advice_for(OSError(number, os.strerror(number)))


def test_only_a_state_can_be_resumed_from(tmp_path: Path) -> None:
    assert not can_resume(tmp_path / "absent")
    built_in(1, tmp_path)
    assert can_resume(tmp_path)
    for state in tmp_path.glob(f"state-*{STATE}"):
        state.unlink()
    assert not can_resume(tmp_path)


def test_a_run_is_not_written_beside_what_it_reads(tmp_path: Path) -> None:
    arms = [Arm("exp"), Arm("best")]
    folder = tmp_path / "runs" / arms[1].label
    folder.mkdir(parents=True)
    (folder / "step-2.safetensors").touch()
    (tmp_path / "corpus.txt").touch()
    (tmp_path / "link").symlink_to(folder)
    for read in (folder, folder / "step-2.safetensors", tmp_path / "link" / "step-2.safetensors"):
        with pytest.raises(ConfigurationError, match=f"lies where {arms[1].label} would be kept"):
            require_apart(tmp_path / "runs", arms, [tmp_path / "corpus.txt", read])
    require_apart(tmp_path / "runs", arms, [tmp_path / "corpus.txt", tmp_path / "runs"])
    require_apart(tmp_path / "other", arms, [folder])
