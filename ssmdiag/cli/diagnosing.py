"""Diagnosing one path after another for a command: progress on stderr, failures beside results, exit codes."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag.cli import messages, process, terminal
from ssmdiag.cli.options import load_families
from ssmdiag.cli.path_list import cores
from ssmdiag.cli.progress import Progress
from ssmdiag.cli.tally import Tally
from ssmdiag.errors import AssumptionError, CheckpointError, Failure, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.cli.outputs import Outputs
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.probing.saved import SavedProbe
    from ssmdiag.reports import Settings
    from ssmdiag.rules.selection import Selection

PATHS_A_WORKER = 16
"""Fewest checkpoints for each process: starting one takes as long as diagnosing several."""


@dataclass(frozen=True, eq=False)
class Options:
    """The options that apply to every checkpoint."""

    assume: Mapping[str, str]
    map_file: Path | None
    device: str
    length: int | None = None
    every_channel: bool = False
    rules: Selection | None = None
    """None: all of them."""
    tails: bool = True
    """Whether a report has the law of the energy that remains."""
    probe: SavedProbe | None = None
    """What was observed of the model."""


def diagnose_paths(
    paths: Sequence[Location], options: Options, *, quiet: bool, jobs: int | None = None
) -> Generator[Diagnosis | Failure]:
    """Yield the diagnosis of every path, in their order; many are shared out between the processor's cores.

    `jobs`: in so many processes, none of it in this one, so that whatever befalls one checkpoint costs only that.
    Raises AssumptionError and MapFileError: those are the command's fault, not a path's.
    """
    if not options.every_channel:
        _keep_to_one_thread()
    workers = min(cores(), len(paths) // PATHS_A_WORKER) if options.device == "cpu" else 1
    if jobs is None and workers < 2:
        for path in paths:
            yield diagnose_path(path, options, quiet=quiet)
        return
    from ssmdiag.cli.workers import in_order

    yield from in_order(
        partial(diagnose_path, options=options, quiet=True) if jobs is None else partial(_diagnose_apart, options),
        paths,
        workers if jobs is None else jobs,
        prepare=_prepare_worker,
        lost=_lost,
        imports=("ssmdiag.diagnosis", "ssmdiag.checkpoint", "ssmdiag.cli.diagnosing"),
        first_here=jobs is None,
    )


def _diagnose_apart(options: Options, path: Path) -> Diagnosis | Failure:
    """Return the diagnosis of one path; also where ssmdiag crashes there, why there is none."""
    try:
        return diagnose_path(path, options, quiet=True)
    except SsmdiagError:
        raise
    except Exception as error:
        advice = "this is a bug in ssmdiag: run this path alone to see where."
        seen = f"{path.name}: ssmdiag crashed, {type(error).__name__}: {error}"
        return _failure(path, CheckpointError(seen, advice=advice), modified(path))


def _prepare_worker() -> None:
    """Set up a worker process: settings of this process do not carry over."""
    process.begin()
    terminal.guard_errors()
    terminal.show_tracebacks()
    _keep_to_one_thread()


def _keep_to_one_thread() -> None:
    """Keep torch to one thread: shared between two, the small operations of a diagnosis take longer, not shorter."""
    process.import_torch()
    import torch

    torch.set_num_threads(1)


def _lost(path: Location, code: int) -> Failure:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    advice = "check whether memory ran out; run this path alone to see its error."
    seen = f"{path.name}: the process that read it {how}."
    return _failure(path, CheckpointError(seen, advice=advice), modified(path))


def _failure(path: Location, error: SsmdiagError, time: float | None) -> Failure:
    return replace(Failure.of(str(path), error), given=os.fspath(path), modified=time)


def modified(path: Location) -> float | None:
    """Return when a file, or the newest entry of a folder, was last modified, in seconds; None where none is there."""
    try:
        times = [os.stat(path).st_mtime]
        if os.path.isdir(path):
            with os.scandir(path) as entries:
                times += [entry.stat().st_mtime for entry in entries]
    except (OSError, ValueError):
        return None
    return round(max(times), 6)


def diagnose_path(path: Location, options: Options, *, quiet: bool) -> Diagnosis | Failure:
    """Return the diagnosis of one path, or why there is none. Raises AssumptionError: that is the command's fault."""
    from ssmdiag.assessment.assess import MOST_CHANNELS
    from ssmdiag.compare.run_order import read_newest
    from ssmdiag.diagnosis import diagnose

    time = modified(path)
    try:
        checkpoint, chosen = read_newest(path)
        with Progress(f"{path.name}, layers", quiet=quiet) as progress:
            diagnosis = diagnose(
                checkpoint,
                assume=options.assume,
                families=load_families(options.map_file),
                device=options.device,
                context_length=options.length,
                most_channels=None if options.every_channel else MOST_CHANNELS,
                tails=options.tails,
                rules=options.rules,
                probe=options.probe,
                on_layer=progress.update,
            )
        return replace(diagnosis, given=os.fspath(path), modified=time, chosen=chosen)
    except AssumptionError:
        raise
    except SsmdiagError as error:
        return _failure(path, error, time)


def report(
    results: Generator[Diagnosis | Failure],
    settings: Settings,
    places: Outputs,
    *,
    tally: Tally,
    fail_on: str | None = None,
    text: Callable[[Iterable[Diagnosis | Failure], Settings], Iterator[str]] | None = None,
) -> None:
    """Write the results, in streaming formats each as soon as it is there, and count them in the tally.

    In text, failures go to stderr. `text` is the command's own text format, if it has one. Lines of JSON are written
    and forgotten.
    """
    from ssmdiag.reports import declares, render, render_each

    format, output, also = places.format, places.target, places.also
    whole: list[Diagnosis | Failure] = []
    failures: list[Failure] = []
    shown = 0
    besides = replace(settings, unicode=True)
    gates = {"colours": settings.colour, "commands": declares(format, "COMMANDS")}
    main = terminal.Lines(output, **gates)
    streams = [terminal.Lines(file) for form, file in also if form == "jsonl"]

    def passing() -> Iterator[Diagnosis | Failure]:
        nonlocal shown
        with closing(results):
            for result in results:
                tally.add(exit_code(result, fail_on))
                if len(streams) < len(also):
                    whole.append(result)
                for stream in streams:
                    stream.write("".join(render_each([result], "jsonl", besides)))
                if format == "text" and isinstance(result, Failure):
                    failures.append(result)
                else:
                    shown += 1
                if format != "text" or own or not isinstance(result, Failure):
                    yield result

    own = text if format == "text" else None
    pieces = own(passing(), settings) if own else render_each(passing(), format, settings)
    with ExitStack() as at_end:
        for lines in (main, *streams):
            at_end.callback(lines.close)
        if output is None or format == "jsonl":
            for piece in pieces:
                main.write(piece)
            if output is not None:
                main.write("")  # a file without lines says that there were none
        else:
            all_of_it = "".join(pieces)
            if all_of_it or format != "text" or not failures or shown:
                terminal.emit(all_of_it, output, **gates)
    for failure in failures:
        terminal.remark(messages.wrapped(render([failure], "text", replace(settings, several=False))))
    for form, file in also:
        if form != "jsonl":
            terminal.emit(render(whole, form, besides), file, commands=declares(form, "COMMANDS"))


def exit_code(result: Diagnosis | Failure, fail_on: str | None = None) -> int:
    """Return 2 for what could not be diagnosed, 1 for findings at `fail_on` or above, else 0."""
    return 2 if isinstance(result, Failure) else result.exit_code(fail_on)
