"""One path after another on several processes: results in the order of the paths, each as soon as it is there.

This process takes the first path itself and only then starts others: its result need not wait for them, nor share the
processor with their imports. A worker that is killed loses only its current path. This process handles Ctrl-C; when it
ends, all workers end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Generic, TypeVar

from ssmdiag.cli.process import STOPPING

Result = TypeVar("Result")
AHEAD = 2
"""Paths a worker holds: the current one, and one to continue with until its result is fetched."""


def in_order(
    work: Callable[[Path], Result],
    paths: Sequence[Path],
    workers: int,
    *,
    prepare: Callable[[], None],
    lost: Callable[[Path, int], Result],
) -> Iterator[Result]:
    """Yield `work(path)` of every path, in their order, and raise what it raises when its turn comes.

    `prepare` is called once in every process that is started, which must be able to import it and `work`. `lost` makes
    the result of a path at which a process ended, of the path and the exit code.
    """
    waiting = deque(enumerate(paths))
    ready: dict[int, _Answer[Result]] = {}
    team: list[_Worker[Result]] = []

    def give() -> None:
        for worker in team * AHEAD:
            worker.give(waiting)

    try:
        waiting.popleft()
        yield work(paths[0])
        with _signals_held_back():
            team.extend([_Worker(work, prepare) for _ in range(workers)])
        give()
        for number in range(1, len(paths)):
            while number not in ready:
                for worker in _with_results(team):
                    worker.fetch(ready)
                for worker in [worker for worker in team if worker.ended]:
                    team.remove(worker)
                    begun, *rest = worker.held
                    ready[begun[0]] = _Answer(lost(begun[1], worker.process.exitcode or 0))
                    waiting.extendleft(reversed(rest))
                give()
                if not team and waiting:
                    position, path = waiting.popleft()
                    ready[position] = _Answer(work(path))
            yield ready.pop(number).result()
    finally:
        for worker in team:
            worker.process.kill()


@dataclass(frozen=True)
class _Answer(Generic[Result]):
    """What `work` returned, or what it raised."""

    returned: Result | None
    raised: Exception | None = None

    def result(self) -> Result:
        if self.raised is not None:
            raise self.raised
        return self.returned  # type: ignore[return-value]


class _Worker(Generic[Result]):
    def __init__(self, work: Callable[[Path], Result], prepare: Callable[[], None]) -> None:
        # Started afresh, not forked: torch's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.pipe, its = context.Pipe()
        self.process = context.Process(target=_serve, args=(its, work, prepare), daemon=True)
        self.process.start()
        its.close()
        self.held: deque[tuple[int, Path]] = deque()
        self.ended = False

    def give(self, waiting: deque[tuple[int, Path]]) -> None:
        """Hand over the next path, if there is one and it has not enough already."""
        if waiting and len(self.held) < AHEAD and not self.ended:
            self.held.append(waiting.popleft())
            with contextlib.suppress(OSError):  # it has ended, which shows when its result is fetched
                self.pipe.send(self.held[-1][1])

    def fetch(self, ready: dict[int, _Answer[Result]]) -> None:
        """Store the answer, or record that there will be none."""
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.ended = True
            self.process.join()
        else:
            ready[self.held.popleft()[0]] = answer


def _with_results(team: Sequence[_Worker[Result]]) -> list[_Worker[Result]]:
    """Return the workers that have something to fetch, once there are any."""
    busy = [worker for worker in team if worker.held]
    there = wait([worker.pipe for worker in busy]) if busy else []
    return [worker for worker in busy if worker.pipe in there]


def _serve(pipe: Connection[Any, Any], work: Callable[[Path], Result], prepare: Callable[[], None]) -> None:
    """Answer every path with its result, or with what was raised, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        prepare()
        while True:
            path = pipe.recv()
            try:
                answer = _Answer(work(path))
            except Exception as error:
                error.add_note(f"In a process of its own:\n{traceback.format_exc()}")
                answer = _Answer(None, error)
            pipe.send(answer)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Start processes with Ctrl-C blocked: before they can ignore it, it would print a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOPPING}
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # else it starts within and unblocks the signals again
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for one in came:
            signal.raise_signal(one)
