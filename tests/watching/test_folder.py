"""The folder of a run while it is written: when a checkpoint is taken for whole, and when the watch ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmdiag.errors import CheckpointError
from ssmdiag.watching import folder as folder_module
from ssmdiag.watching.folder import RunFolder, follow


class Time:
    """A clock that goes on where someone sleeps, and does then what is due."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.due: list[tuple[float, Callable[[], object]]] = []

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        for moment, act in [*self.due]:
            if moment <= self.now - 1_000_000:
                self.due.remove((moment, act))
                act()

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        self.due.append((seconds, act))

    def write(self, path: Path, text: str = "x") -> Path:
        """Write a file as of now."""
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        os.utime(path, (self.now, self.now))
        return path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(folder_module, "time", clock)
    return clock


def looks(folder: RunFolder, idle: float) -> list[list[str]]:
    """Return what each look found, all of it read."""
    return [[path.name for path in ready if folder.done(path)] for ready in follow(folder, idle)]


def found(folder: RunFolder, idle: float) -> list[str]:
    return [name for look in looks(folder, idle) for name in look]


def test_a_file_is_read_once_it_has_kept_its_size_and_time_over_two_looks(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    path = clock.write(tmp_path / "step-1.pt")
    for text in ("x", "xx", "xx"):
        assert folder.look() == []
        clock.sleep(5)
        clock.write(path, text) if text != "xx" or path.read_text() != "xx" else None
    assert folder.look() == [path]


def test_what_has_not_changed_for_longer_than_that_is_read_at_once_in_order(clock: Time, tmp_path: Path) -> None:
    for number in (10, 9, 100):
        clock.write(tmp_path / f"step-{number}.pt")
        clock.write(tmp_path / f"checkpoint-{number}" / "model.safetensors")
    clock.now += 6
    assert [path.name for path in RunFolder(tmp_path, 5).look()] == [
        *(f"checkpoint-{number}" for number in (9, 10, 100)),
        *(f"step-{number}.pt" for number in (9, 10, 100)),
    ]


def test_a_folder_is_whole_when_all_its_files_are_and_is_read_once(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    inside = tmp_path / "checkpoint-5"
    clock.write(inside / "model.safetensors")
    for second in (1, 6, 11):
        clock.at(second, lambda: clock.write(inside / "optimizer.pt", str(clock.now)))
    clock.at(60, lambda: clock.write(inside / "trainer_state.json"))
    assert [number for number, names in enumerate(looks(folder, 50)) if names] == [4]


def test_a_file_that_is_written_over_is_read_again(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    path = clock.write(tmp_path / "step-1.pt")
    clock.at(30, lambda: clock.write(path, "another"))
    assert found(folder, 60) == ["step-1.pt"] * 2


def test_what_changed_while_it_was_read_is_not_taken_as_read(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    path = clock.write(tmp_path / "step-1.pt")
    clock.now += 9
    assert folder.look() == [path]
    clock.write(path, "longer")
    assert folder.done(path) is False
    assert folder.look() == []
    clock.now += 5
    assert folder.look() == [path]


def test_what_cannot_be_read_is_tried_again_ever_later_or_when_it_changes(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    path = clock.write(tmp_path / "step-1.pt")
    tried = []
    for look in range(40):
        clock.now += 5
        if look == 35:
            clock.write(path, "more")
        if folder.look():
            tried.append(look)
            folder.later(path)
    assert tried == [0, 1, 3, 7, 15, 31, 36, 37, 39]


def test_what_was_deleted_while_it_was_read_is_read(clock: Time, tmp_path: Path) -> None:
    path = clock.write(tmp_path / "step-1.pt")
    clock.now += 9
    folder = RunFolder(tmp_path, 5)
    assert folder.look() == [path]
    path.unlink()
    assert folder.done(path) is True
    assert folder.look() == []


def test_what_is_deleted_is_forgotten_and_what_comes_under_its_name_read(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, 5)
    path = clock.write(tmp_path / "step-1.pt")
    clock.at(20, path.unlink)
    clock.at(40, lambda: clock.write(path))
    assert found(folder, 60) == ["step-1.pt"] * 2


@pytest.mark.parametrize("name", ["tmp-checkpoint-5/model.pt", ".step-5.pt", "5.orbax-checkpoint-tmp-1/a.safetensors"])
def test_names_of_unfinished_files_are_passed_over(name: str, clock: Time, tmp_path: Path) -> None:
    clock.write(tmp_path / name)
    clock.now += 60
    assert RunFolder(tmp_path, 5).look() == []


def test_it_ends_after_being_idle_and_never_before_what_is_there_was_read(clock: Time, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "later", 5)
    clock.at(32, lambda: clock.write(tmp_path / "later" / "step-1.pt"))
    assert found(folder, 40) == ["step-1.pt"]
    assert 40 + 40 <= clock.now - 1_000_000 <= 40 + 45
    clock.write(tmp_path / "now" / "step-1.pt")
    folder = RunFolder(tmp_path / "now", 5)
    assert looks(folder, 0) == [[], ["step-1.pt"]]


def test_an_absent_folder_is_waited_for_and_one_that_goes_is_no_end(clock: Time, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = RunFolder(run, 5)
    clock.at(10, lambda: clock.write(run / "step-1.pt"))
    clock.at(40, lambda: shutil.rmtree(run))
    clock.at(50, lambda: clock.write(run / "step-2.pt"))
    assert found(folder, 100) == ["step-1.pt", "step-2.pt"]


def test_a_folder_of_runs_is_refused_with_one_of_them(clock: Time, tmp_path: Path) -> None:
    for run in ("a", "b"):
        for number in (1, 2):
            clock.write(tmp_path / run / f"step-{number}.pt")
    with pytest.raises(CheckpointError, match=r"holds runs in folders of their own: a, b(?s:.*)ssmdiag watch .*a"):
        RunFolder(tmp_path, 5).look()
