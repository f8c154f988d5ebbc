"""One path after another on several processes: results in the order of the paths, each as soon as it is there.

A worker that is killed loses only its current path; another takes its place. This process handles Ctrl-C; when it ends,
all workers end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess, SpawnProcess
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ssmdiag.cli.process import STOPPING
from ssmdiag.errors import SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location

Result = TypeVar("Result")
AHEAD = 2
"""Paths a worker holds: the current one, and one to continue with until its result is fetched."""
MOST_READY = 256
"""Results that wait for an earlier one: each is in memory, and is lost when this process is killed."""
STARTS = 3
"""Processes in a row that may end before they are ready."""
_READY = "ready"


def in_order(
    work: Callable[[Location], Result],
    paths: Sequence[Location],
    workers: int,
    *,
    prepare: Callable[[], None],
    lost: Callable[[Location, int], Result],
    imports: Sequence[str] = (),
    first_here: bool = False,
) -> Iterator[Result]:
    """Yield `work(path)` of every path, in their order, and raise what it raises when its turn comes.

    `prepare` is called once in every process that is started, which must be able to import it and `work`. `lost` makes
    the result of a path at which a process ended, of the path and the exit code. `imports` are modules that the
    processes share where the system can fork. `first_here`: this process takes the first path itself and only then
    starts others, so that its result need not wait for them, nor share the processor with their imports.

    Raises SsmdiagError where no process can be started.
    """
    waiting = deque(enumerate(paths))
    ready: dict[int, _Answer[Result]] = {}
    team: list[_Worker[Result]] = []
    failed = 0
    try:
        if first_here:
            waiting.popleft()
            yield work(paths[0])
        for number in range(int(first_here), len(paths)):
            while number not in ready:
                missing = min(workers, len(waiting)) - len(team)
                if missing > 0:
                    with _signals_held_back():
                        team.extend([_Worker(work, prepare, imports) for _ in range(missing)])
                for worker in team * AHEAD:
                    if waiting and waiting[0][0] < number + MOST_READY:
                        worker.give(waiting)
                for worker in _with_news(team):
                    worker.fetch(ready)
                for worker in [worker for worker in team if worker.ended]:
                    team.remove(worker)
                    waiting.extendleft(reversed(worker.held))
                    code = worker.process.exitcode or 0
                    if worker.begun and worker.held:
                        failed = 0
                        position, path = waiting.popleft()
                        ready[position] = _Answer(lost(path, code))
                    elif not worker.begun and (failed := failed + 1) == STARTS:
                        raise SsmdiagError(
                            f"no process could be started: {STARTS} ended at once, the last with code {code}.",
                            advice="check whether memory ran out; take fewer --jobs.",
                        )
            yield ready.pop(number).result()
    finally:
        for worker in team:
            worker.process.kill()
        for worker in team:
            worker.process.join(1)


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
    def __init__(self, work: Callable[[Location], Result], prepare: Callable[[], None], imports: Sequence[str]) -> None:
        # Never forked from this process: torch's threads do not survive that. The server it is forked from has only
        # imported; on macOS even that is not safe.
        self.pipe, its = multiprocessing.Pipe()
        process: type[ForkServerProcess | SpawnProcess] = SpawnProcess
        if sys.platform == "linux":
            multiprocessing.set_forkserver_preload(list(imports))
            process = ForkServerProcess
        self.process = process(target=_serve, args=(its, work, prepare), daemon=True)
        self.process.start()
        its.close()
        self.held: deque[tuple[int, Location]] = deque()
        self.begun = False
        """Whether it was ready, and so has begun with a path."""
        self.ended = False

    def give(self, waiting: deque[tuple[int, Location]]) -> None:
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
            if answer == _READY:
                self.begun = True
            else:
                ready[self.held.popleft()[0]] = answer


def _with_news(team: Sequence[_Worker[Result]]) -> list[_Worker[Result]]:
    """Return the workers that have something to fetch, once there are any."""
    there = wait([worker.pipe for worker in team])
    return [worker for worker in team if worker.pipe in there]


def _serve(pipe: Connection[Any, Any], work: Callable[[Location], Result], prepare: Callable[[], None]) -> None:
    """Answer every path with its result, or with what was raised, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):
        prepare()
        pipe.send(_READY)
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
