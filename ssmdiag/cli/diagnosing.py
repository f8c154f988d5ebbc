"""Diagnosing one path after another for a command: progress on stderr, failures beside results, exit codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.cli import terminal
from ssmdiag.cli.options import load_families
from ssmdiag.errors import AssumptionError, SsmdiagError
from ssmdiag.printable import printable

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports import Failure, Settings
    from ssmdiag.rules.selection import Selection
    from ssmdiag.writer import Target

PATHS_A_WORKER = 16
"""Checkpoints that are worth a process of their own, which takes as long to start as several take to diagnose."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What the user asked of every checkpoint."""

    assume: Mapping[str, str]
    map_file: Path | None
    device: str
    length: int | None = None
    every_channel: bool = False
    rules: Selection | None = None
    """None: all of them."""


def diagnose_paths(paths: Sequence[Path], asked: Asked, *, quiet: bool) -> list[Diagnosis | Failure]:
    """Return the diagnosis of every path, in their order; many are shared out between the processor's cores.

    Raises AssumptionError and MapFileError: those are the command's fault, not a path's.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(paths) // PATHS_A_WORKER)
    if not asked.every_channel:
        _start_worker()
    if workers < 2 or asked.device != "cpu":
        return [diagnose_path(path, asked, quiet=quiet) for path in paths]
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Started afresh, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process) as pool:
        return list(pool.map(partial(diagnose_path, asked=asked, quiet=True), paths))


def _start_worker() -> None:
    """Keep torch to one thread: shared between two, the small operations of a diagnosis take longer, not shorter."""
    import torch

    torch.set_num_threads(1)


def _start_process() -> None:
    """Start a process of its own as a worker: what is set in one is not set in another."""
    terminal.show_tracebacks()
    _start_worker()


def diagnose_path(path: Path, asked: Asked, *, quiet: bool) -> Diagnosis | Failure:
    """Return the diagnosis of one path, or why there is none. Raises AssumptionError: that is the command's fault."""
    from ssmdiag.checkpoint import read_checkpoint
    from ssmdiag.diagnosis import diagnose
    from ssmdiag.examination import MOST_CHANNELS
    from ssmdiag.reports import Failure

    progress = _Progress(path.name, quiet)
    try:
        return diagnose(
            read_checkpoint(path),
            assume=asked.assume,
            families=load_families(asked.map_file),
            device=asked.device,
            context_length=asked.length,
            most_channels=None if asked.every_channel else MOST_CHANNELS,
            rules=asked.rules,
            on_layer=progress.update,
        )
    except AssumptionError:
        raise
    except SsmdiagError as error:
        return Failure.of(str(path), error)
    finally:
        progress.close()


def report(
    results: Sequence[Diagnosis | Failure],
    format: str,
    settings: Settings,
    output: Target | None,
    *,
    text: Callable[[Sequence[Diagnosis | Failure], Settings], str] | None = None,
) -> None:
    """Write the results; in text, failures go to stderr. `text` is the command's own text format, if it has one."""
    from ssmdiag.reports import Failure, render

    if format != "text":
        terminal.emit(render(results, format, settings), output, commands=format == "github")
        return
    shown = [result for result in results if not isinstance(result, Failure)]
    if shown:
        said = text(results, settings) if text else render(shown, "text", settings)
        terminal.emit(said, output, colours=settings.colour)
    for result in results:
        if isinstance(result, Failure):
            terminal.remark(render([result], "text", settings))


def exit_code(result: Diagnosis | Failure, fail_on: str | None = None) -> int:
    """Return 2 for what could not be diagnosed, 1 for findings at `fail_on` or above, else 0."""
    from ssmdiag.reports import Failure

    return 2 if isinstance(result, Failure) else result.exit_code(fail_on)


class _Progress:
    """A bar on stderr for what takes over a second; one plain line where stderr is no terminal."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.name = name
        self.quiet = quiet
        self.start = time.monotonic()
        self.stop: Callable[[], None] | None = None
        self.advance: Callable[[int, int], None] | None = None

    def update(self, done: int, total: int) -> None:
        if self.quiet or time.monotonic() - self.start < 1 or done == total:
            return
        if self.advance is None:
            self._open(done, total)
        else:
            self.advance(done, total)

    def close(self) -> None:
        if self.stop:
            self.stop()

    def _open(self, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            terminal.remark(f"{printable(self.name)}: reading layer {done} of {total} …")
            self.advance = lambda done, total: None
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        bar = Progress(console=Console(file=terminal.drawing()), transient=True)
        task = bar.add_task(escape(printable(self.name)), total=total)
        bar.start()
        self.stop = bar.stop
        self.advance = lambda done, total: bar.update(task, completed=done)
