"""Paths shared out between processes: order, what is lost with one, what is raised, what is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssmdiag.cli import workers
from ssmdiag.cli.workers import in_order
from ssmdiag.errors import SsmdiagError

Result = tuple[str, int]


def nothing() -> None:
    """Prepare nothing."""


def lost(path: Path, code: int) -> Result:
    return f"lost {path.name}", code


def names(folder: Path, count: int) -> list[Path]:
    return [folder / f"{number:02d}" for number in range(count)]


def run(work: Callable[[Path], Result], paths: list[Path]) -> Iterator[Result]:
    return in_order(work, paths, 2, prepare=nothing, lost=lost, first_here=True)


def second_after_third(path: Path) -> Result:
    """Return name and process; the second waits until the third is done."""
    if path.name == "01":
        deadline = time.monotonic() + 60
        while not path.with_name("02 done").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    path.with_name(f"{path.name} done").touch()
    return path.name, os.getpid()


def test_results_come_in_order_and_the_first_from_this_process(tmp_path: Path) -> None:
    results = run(second_after_third, names(tmp_path, 9))
    name, process = next(results)
    assert (name, process) == ("00", os.getpid())
    rest = list(results)
    assert [name for name, _ in rest] == [f"{number:02d}" for number in range(1, 9)]
    assert os.getpid() not in {process for _, process in rest}
    assert len({process for _, process in rest}) == 2


def killed_at_three(path: Path) -> Result:
    if path.name == "03":
        os.kill(os.getpid(), signal.SIGKILL)
    return path.name, 0


def test_a_process_that_is_killed_costs_one_path(tmp_path: Path) -> None:
    results = list(run(killed_at_three, names(tmp_path, 8)))
    expected = [(f"{number:02d}", 0) for number in range(8)]
    expected[3] = ("lost 03", -signal.SIGKILL)
    assert results == expected


def ends_but_for_the_last(path: Path) -> Result:
    if path.name != "06":
        os._exit(7)
    return path.name, os.getpid()


def test_others_take_the_place_of_those_that_end_and_this_process_is_kept_out(tmp_path: Path) -> None:
    results = list(in_order(ends_but_for_the_last, names(tmp_path, 7), 2, prepare=nothing, lost=lost))
    assert results[:-1] == [(f"lost {number:02d}", 7) for number in range(6)]
    assert results[-1][0] == "06"
    assert results[-1][1] != os.getpid()


def end() -> None:
    os._exit(9)


def test_processes_that_end_before_they_begin_are_an_error_and_no_path_is_blamed(tmp_path: Path) -> None:
    results = in_order(pid_of_worker, names(tmp_path, 9), 2, prepare=end, lost=lost)
    with pytest.raises(SsmdiagError, match="no process could be started: 3 ended at once, the last with code 9"):
        next(results)


def slow_at_first(path: Path) -> Result:
    """Return how many were begun; of the first path only when for a while no other has been."""
    path.with_name(f"{path.name} begun").touch()
    if path.name == "00":
        before, now = 0, 1
        while before < now or now < 2:
            time.sleep(0.5)
            before, now = now, len(list(path.parent.iterdir()))
    return path.name, len(list(path.parent.iterdir()))


def test_results_that_wait_for_an_earlier_one_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "MOST_READY", 5)
    results = list(in_order(slow_at_first, names(tmp_path, 20), 2, prepare=nothing, lost=lost))
    assert [name for name, _ in results] == [f"{number:02d}" for number in range(20)]
    assert results[0][1] <= 5


def wrong(path: Path) -> Result:
    if path.name == "02":
        raise ValueError("planted")
    return path.name, 0


@pytest.mark.slow
def test_what_is_raised_comes_after_what_was_done_and_says_where(tmp_path: Path) -> None:
    results = run(wrong, names(tmp_path, 6))
    assert [next(results)[0], next(results)[0]] == ["00", "01"]
    with pytest.raises(ValueError, match="planted") as error:
        next(results)
    assert "in wrong" in error.value.__notes__[0]


def pid_of_worker(path: Path) -> Result:
    return path.name, os.getpid()


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_processes_end_with_whoever_reads_no_further(tmp_path: Path) -> None:
    results = run(pid_of_worker, names(tmp_path, 6))
    next(results)
    _, process = next(results)
    results.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 30
    while alive(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(process)


FOREVER = """
import sys
from pathlib import Path
from ssmdiag.cli import process
from ssmdiag.cli.workers import in_order
from tests.cli.test_workers import lost, nothing, stuck
process.begin()
process._on_signals(process._stop)
try:
    print("ready", flush=True)
    paths = [Path(str(number)) for number in range(9)]
    for name, pid in in_order(stuck, paths, 2, prepare=nothing, lost=lost, first_here=sys.argv[1:] == ["first"]):
        print(pid, flush=True)
except KeyboardInterrupt:
    process.end(130)
except SystemExit as stop:
    process.end(stop.code)
"""


def stuck(path: Path) -> Result:
    """Return at the first two paths, never at others."""
    while int(path.name) > 1:
        time.sleep(0.01)
    return path.name, os.getpid()


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("heard_signals")
@pytest.mark.skipif(os.name != "posix", reason="process groups")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("lines", "first"), [(2, False), (1, True), (2, True), (0, False)])
def test_a_signal_ends_all_without_a_word(number: signal.Signals, lines: int, first: bool) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", FOREVER, *["first"] * first],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        processes = [int(command.stdout.readline()) for _ in range(lines)]
        os.killpg(command.pid, number)
        _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (128 + number, "")
    assert not any(alive(process) for process in processes)
