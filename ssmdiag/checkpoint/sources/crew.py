"""Eight threads that fetch what was asked for ahead of time.

They are daemons, unlike those of `concurrent.futures`: a command that is interrupted does not wait for what is
queued.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 8


def submit(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Future[T]:
    """Return the future result of a call that another thread makes."""
    future: Future[T] = Future()
    _crew().put((future, work, arguments, options))
    return future


@cache
def _crew() -> queue.SimpleQueue[Any]:
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for number in range(THREADS):
        threading.Thread(target=_serve, args=(waiting,), name=f"ssmdiag-fetch-{number}", daemon=True).start()
    return waiting


def _serve(waiting: queue.SimpleQueue[Any]) -> None:
    while True:
        future, work, arguments, options = waiting.get()
        try:
            future.set_result(work(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)
        del future, work, arguments, options  # else the file is held until the next one comes
