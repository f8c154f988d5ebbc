"""`ssmdiag watch RUN_DIR`: a line for each checkpoint of a run, as they are written."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssmdiag.cli import messages, terminal
from ssmdiag.cli.compare import FailOn
from ssmdiag.cli.diagnosing import Options, diagnose_path
from ssmdiag.cli.options import (
    Assume,
    ComputeDevice,
    Length,
    Lines,
    MapFile,
    choose_device,
    load_families,
    only_here,
    parse_assumptions,
)
from ssmdiag.cli.outputs import claim
from ssmdiag.errors import Failure, SsmdiagError, UnknownFamilyError
from ssmdiag.printable import printable

if TYPE_CHECKING:
    from ssmdiag.compare.layer_history import LayerHistory
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.output.writer import Target
    from ssmdiag.watching.folder import RunFolder
    from ssmdiag.watching.run_so_far import RunSoFar


def watch(
    directory: Annotated[
        Path,
        typer.Argument(
            parser=only_here,
            metavar="RUN_DIR",
            help="Directory that checkpoints are written to; it need not be there yet.",
            show_default=False,
        ),
    ],
    interval: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", min=0.1, max=86_400, help="Time from one look to the next."),
    ] = 5.0,
    idle: Annotated[
        float | None,
        typer.Option(
            "--idle",
            metavar="MINUTES",
            min=0.0,
            max=525_600,
            show_default=False,
            help="End after so long without a change in the directory; by default never.",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            help="End with 1 once `compare --fail-on` would of the checkpoints so far.",
        ),
    ] = "never",
    format: Annotated[
        Literal["text", "jsonl"] | None,
        typer.Option(
            "--format", "-f", help="Form of the lines; by default what --output ends in, else text.", show_default=False
        ),
    ] = None,
    output: Lines = None,
    length: Length = None,
    assume: Assume = None,
    map_file: MapFile = None,
    device: ComputeDevice = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The lines alone; no remarks.")] = False,
) -> None:
    """Follow a run: a line for each of its checkpoints, as soon as it is whole.

    OK, WARNING or PROBLEM and what it is, then the layer with the smallest margin, its longest half-life and its law.
    """
    from ssmdiag.watching.folder import RunFolder, follow
    from ssmdiag.watching.run_so_far import RunSoFar

    if directory.exists() and not directory.is_dir():
        raise SsmdiagError(
            f"{directory} is a file.",
            expected="the directory of a run",
            advice=f"ssmdiag inspect {shlex.quote(str(directory))} reports on one.",
        )
    places = claim(output, None, format=format, known=("text", "jsonl"), reads=[directory, map_file])
    families = load_families(map_file)
    options = Options(parse_assumptions(assume), map_file, choose_device(device), length)
    folder = RunFolder(directory, interval)
    run = RunSoFar(options.assume, families, options.device, length)
    watching = _Watching(folder, run, options, fail_on, places.format, places.target, quiet)
    try:
        for ready in follow(folder, None if idle is None else 60 * idle):
            if watching.take(ready):
                raise typer.Exit(1)
    except KeyboardInterrupt:  # the usual end
        pass
    finally:
        watching.close()


class _Watching:
    """Reads what is ready, and writes its lines."""

    def __init__(
        self,
        folder: RunFolder,
        run: RunSoFar,
        options: Options,
        fail_on: FailOn,
        format: str,
        target: Target | None,
        quiet: bool,
    ) -> None:
        self.folder, self.run, self.options, self.fail_on, self.quiet = folder, run, options, fail_on, quiet
        self.target = target
        self.jsonl = format == "jsonl"
        self.lines = terminal.Lines(target)
        self.read_any = False
        self.written: list[str] = []
        self.remarked: set[str] = set()

    def take(self, ready: list[Path]) -> bool:
        """Read these checkpoints, in order; return whether the run so far does what --fail-on names.

        It is judged after the last of them: the more often it is, the more often chance decides.
        """
        from ssmdiag.watching.run_so_far import in_order

        if self.folder.empty and not self.read_any:
            there = self.folder.path.is_dir()
            self._remark(
                f"{self.folder.path} {'holds no numbered checkpoint' if there else 'is not there'} yet: waiting."
            )
        ready = in_order(ready)
        histories: tuple[LayerHistory, ...] = ()
        for path in ready:
            result = self._read(path)
            if path is ready[-1]:
                histories = self.run.judge()
            if result:
                self._write(result, path, histories)
        return self.fail_on != "never" and any(history.fails(self.fail_on) for history in histories)

    def close(self) -> None:
        """Close the file, if there is one."""
        self.lines.close()

    def _read(self, path: Path) -> Diagnosis | None:
        """Return the diagnosis of a checkpoint; None where it is not whole, is gone, or has no recurrence."""
        result = diagnose_path(path, self.options, quiet=True)
        try:
            if isinstance(result, Failure):
                raise (UnknownFamilyError if result.kind == "UnknownFamilyError" else SsmdiagError)(result.seen)
            self.run.add(path)
            if self.run.is_of_another_model(path):
                self._remark(f"{path.name} has none of the layers of the first checkpoint: it is of another model.")
        except UnknownFamilyError as error:
            self.folder.done(path)
            self._remark(f"{path.name} is left out: {error.seen}")
        except SsmdiagError as error:
            if path.exists():  # else its trainer has deleted it
                self.folder.later(path)
                self._remark(f"{path.name} cannot be read yet, and is tried again: {error.seen}")
        else:
            return result if self.folder.done(path) else None
        return None

    def _write(self, diagnosis: Diagnosis, path: Path, histories: Sequence[LayerHistory]) -> None:
        from ssmdiag.reports.compare.watched import json_line, text_line

        self.read_any = True
        when = self.run.step_of(path)
        if self.jsonl:
            self.lines.write(json_line(diagnosis, *when, histories))
            return
        line = text_line(diagnosis, *when, histories, terminal.width())
        if self.target is not None:  # a file of text is replaced, as every report in text is
            self.written += [line]
            line = "".join(self.written)
        terminal.emit(line, self.target)

    def _remark(self, sentence: str) -> None:
        if not self.quiet and sentence not in self.remarked:
            self.remarked.add(sentence)
            terminal.remark(messages.wrapped(printable(sentence)))
