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

from ssmdiag.cli.workers import in_order

Result = tuple[str, int]


def nothing() -> None:
    """Prepare nothing."""


def lost(path: Path, code: int) -> Result:
    return f"lost {path.name}", code


def names(folder: Path, count: int) -> list[Path]:
    return [folder / f"{number:02d}" for number in range(count)]


def run(work: Callable[[Path], Result], paths: list[Path]) -> Iterator[Result]:
    return in_order(work, paths, 2, prepare=nothing, lost=lost)


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


def killed_but_for(path: Path) -> Result:
    if path.name in ("01", "02"):
        os._exit(7)
    return path.name, os.getpid()


@pytest.mark.slow
def test_when_all_are_killed_this_process_goes_on(tmp_path: Path) -> None:
    results = list(run(killed_but_for, names(tmp_path, 6)))
    assert [name for name, _ in results] == ["00", "lost 01", "lost 02", "03", "04", "05"]
    assert [code for _, code in results[1:3]] == [7, 7]


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
    for name, pid in in_order(stuck, [Path(str(number)) for number in range(9)], 2, prepare=nothing, lost=lost):
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
@pytest.mark.parametrize("lines", [1, 2])
def test_a_signal_ends_all_without_a_word(number: signal.Signals, lines: int) -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", FOREVER],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as command:
        assert command.stdout is not None
        processes = [int(command.stdout.readline()) for _ in range(lines)]
        os.killpg(command.pid, number)
        _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (128 + number, "")
    assert not any(alive(process) for process in processes)
