"""Files of a training run: whole or untouched, and read by the other commands as what they are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssmdiag import diagnose, extract_recurrences
from ssmdiag.compare.run import compare_run
from ssmdiag.compare.run_order import expand_run
from ssmdiag.errors import CheckpointError, SsmdiagError
from ssmdiag.recurrence.maps import STABLE_MAPS, find_map
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.run_folder import state_path
from ssmdiag.retrain.saving import checkpoint_path, write
from tests.reference import relative_error, stepped_kernel, stepped_matrix_kernel
from tests.retrain.small import BUDGET, RECURRENCES, ensemble, model, task, train

ARM = Arm("best", lr=0.05)


@pytest.fixture(params=["write", "fsync", "rename"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fill the disk: the first half of a file is written, or all of it and the disk says no later."""

    def no_space(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain = Path.open

    def half(path: Path, mode: str) -> object:
        if "w" in mode:
            with plain(path, mode) as file:
                file.write(b"half of it")
            no_space()
        return plain(path, mode)

    def fill() -> None:
        if request.param == "write":
            monkeypatch.setattr(Path, "open", half)
        elif request.param == "fsync":
            monkeypatch.setattr(os, "fsync", no_space)
        else:
            monkeypatch.setattr(Path, "replace", no_space)

    return fill


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path, full_disk: Callable[[], None]) -> None:
    path = tmp_path / "state.pt"
    write(path, b"old")
    full_disk()
    with pytest.raises(SsmdiagError) as caught:
        write(path, b"new and longer")
    assert files(tmp_path) == {"state.pt": b"old"}
    assert "No space left on device" in caught.value.seen
    assert "the old file is unchanged" in caught.value.seen
    assert "--resume" in str(caught.value.advice)


@pytest.mark.one_in(3)
def test_a_run_that_meets_a_full_disk_goes_on_from_the_last_state(
    tmp_path: Path, full_disk: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, parts = task(), tmp_path / "parts"
    (whole,) = train([ARM], data, model(), BUDGET, folder=tmp_path / "whole")
    kept: dict[str, bytes] = {}

    def fill(progress: object) -> None:
        if not kept:
            kept.update(files(parts))
            full_disk()

    with pytest.raises(SsmdiagError, match="cannot be written"):
        train([ARM], data, model(), BUDGET, folder=parts, on_progress=fill)
    assert files(parts) == kept
    monkeypatch.undo()
    (resumed,) = train([ARM], data, model(), BUDGET, folder=parts, resume=True)
    assert resumed.history == whole.history
    assert resumed.checkpoints[-1].read_bytes() == whole.checkpoints[-1].read_bytes()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SsmdiagError, match="cannot be written"):
        train([ARM], task(), model(), BUDGET, folder=tmp_path / "file")


def test_checkpoints_are_the_steps_asked_for_with_names_that_sort(tmp_path: Path) -> None:
    budget = Budget(steps=12, batch=8, validate_every=5, checkpoint_every=4)
    (result,) = train([ARM], task(), model(), budget, folder=tmp_path)
    assert [path.name for path in result.checkpoints] == [f"step-{step:02d}.safetensors" for step in (0, 4, 8, 12)]
    assert sorted(result.checkpoints) == list(result.checkpoints)
    assert checkpoint_path(tmp_path, ARM, 4, budget) == result.checkpoints[1]


def stepping(folder: Path, recurrence: str, param: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each layer's kernel as the file is read, and as the trained model has it."""
    arm = Arm(param, lr=0.05)
    (result,) = train([arm], task(), model(recurrence, depth=2), BUDGET, folder=folder)
    arms = ensemble(arm, recurrence=recurrence, depth=2)
    arms.load_state(0, load_file(result.checkpoints[-1]))
    for depth, read in enumerate(extract_recurrences(result.checkpoints[-1])):
        p = {name: value.detach().double() for name, value in arms.of_layer(depth, arms.parameters).items()}
        p["D"] = torch.zeros_like(p["D"])
        channels = p["D"].shape[1]
        impulses = torch.zeros(1, channels, 12, channels, dtype=torch.float64)
        impulses[0, range(channels), 0, range(channels)] = 1.0
        maps = arms._maps(0, 1)
        response = arms.layer.apply(p, maps, impulses)[0]  # (input, step, output)
        if recurrence == "s4d":
            yield stepped_kernel(read, 12)[0], torch.stack([response[c, :, c] for c in range(channels)])
        else:
            yield stepped_matrix_kernel(read, 12), response.permute(1, 2, 0)


@pytest.mark.one_in(18)
@pytest.mark.parametrize("param", [*STABLE_MAPS, "best(b=0.1)", "best(a=2, b=0.3)"])
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_files_are_read_through_the_map_they_were_trained_through(recurrence: str, param: str, tmp_path: Path) -> None:
    pairs = list(stepping(tmp_path, recurrence, param))
    assert len(pairs) == 2
    for read, trained in pairs:
        assert relative_error(read, trained) < 1e-9


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_a_diagnosis_knows_family_map_step_and_context(recurrence: str, tmp_path: Path) -> None:
    (result,) = train([ARM], task(), model(recurrence), BUDGET, folder=tmp_path)
    found = diagnose(result.checkpoints[-1])
    assert [layer.family for layer in found.layers] == [{"s4d": "stablessm", "lru": "lru"}[recurrence]]
    assert found.context_length == 16
    weights = extract_recurrences(result.checkpoints[-1])[0].weights
    assert [weight.map for weight in weights if weight.role == "rate"] == [find_map("best").name]
    assert not any("parameterization" in str(assumption) for layer in found.layers for assumption in layer.assumptions)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_the_map_is_known_from_the_file_alone_and_from_the_settings_beside_it(recurrence: str, tmp_path: Path) -> None:
    (result,) = train([ARM], task(), model(recurrence), BUDGET, folder=tmp_path)
    file = result.checkpoints[-1]
    alone, bare = tmp_path / "alone" / file.name, tmp_path / "bare" / file.name
    for path in (alone, bare):
        path.parent.mkdir()
    alone.write_bytes(file.read_bytes())
    save_file(load_file(file), bare)
    (bare.parent / "config.json").write_bytes((file.parent / "config.json").read_bytes())
    rates = [extract_recurrences(path)[0].log_eigenvalues for path in (file, alone, bare)]
    assert rates[0].equal(rates[1])
    assert rates[0].equal(rates[2])


@pytest.mark.slow
@pytest.mark.parametrize("recurrence", RECURRENCES)
def test_a_run_is_compared_in_the_order_of_its_steps(recurrence: str, tmp_path: Path) -> None:
    budget = Budget(steps=12, batch=8, checkpoint_every=3)
    (result,) = train([ARM], task(), model(recurrence), budget, folder=tmp_path)
    for paths in (result.checkpoints, result.checkpoints[::-1]):
        run = compare_run(paths)
        assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 3, 6, 9, 12]
        assert not run.problems


def test_the_folder_of_a_run_offers_its_arms_and_never_its_state(tmp_path: Path) -> None:
    train([ARM, Arm("exp")], task(), model(), BUDGET, folder=tmp_path)
    for read in (diagnose, lambda path: expand_run([path])):
        with pytest.raises(CheckpointError, match=r"2 runs, each in a folder of its own: best-lr0.05-seed0, exp-lr0"):
            read(tmp_path)
    with pytest.raises(CheckpointError, match=r"retrain --resume(.|\n)*name a step-"):
        diagnose(state_path(tmp_path, (ARM, Arm("exp"))))
