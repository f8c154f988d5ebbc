"""`ssmdiag compare PATH PATH…`: checkpoints of a run, different models, or a conversion that is to be proven."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import (
    AllLayers,
    Assume,
    Color,
    ComputeDevice,
    Device,
    Format,
    Length,
    MapFile,
    Output,
    Plots,
    Quiet,
    ReportFormat,
    choose_device,
    load_families,
    parse_assumptions,
)
from ssmdiag.cli.terminal import Colour
from ssmdiag.errors import CheckpointError, DifferentModelsError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.families import Family
    from ssmdiag.reports import Settings


class FailOn(StrEnum):
    """Values of --fail-on."""

    never = "never"
    crossing = "crossing"
    converging = "converging"


class Memory(StrEnum):
    """Values of --memory."""

    none = "none"
    ends = "ends"
    all = "all"


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH",
            help="Checkpoints of one run, in any order, or the directory they are in; or models. Of several "
            "directories of runs, the last checkpoint of each.",
            show_default=False,
        ),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Two checkpoints must have one memory: exit 1 where a layer differs.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            metavar="SHARE",
            help="What --strict lets a rate, frequency, kernel or weight differ by, relative; by default 0.001, beside "
            "another type 0.01 for float16 and 0.05 for bfloat16; of weights 0.00001 or a unit in their last place.",
        ),
    ] = None,
    fail_on: Annotated[
        FailOn,
        typer.Option(
            "--fail-on",
            help="Exit 1 if a layer converges to the boundary; or only if it reached a limit or is projected to.",
        ),
    ] = FailOn.never,
    format: ReportFormat = Format.text,
    output: Output = None,
    length: Length = None,
    memory: Annotated[
        Memory, typer.Option("--memory", help="Checkpoints of a run at which horizon and decay law are found.")
    ] = Memory.ends,
    assume: Assume = None,
    map_file: MapFile = None,
    all_layers: AllLayers = False,
    plots: Plots = True,
    color: Color = Colour.auto,
    device: ComputeDevice = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Say which layers of a run converge to the stability boundary, and when they reach it.

    Two different models: what memory one has that the other lacks; of more, a table. With --strict: whether a
    conversion kept the memory. Exit 0: read. Exit 1: --strict or --fail-on found what it looks for, or what
    --strict is to prove could not be seen. Exit 2: a checkpoint, or part of one, could not be read; what could
    be is still compared.
    """
    from ssmdiag.compare.run_order import expand_run, last_checkpoints
    from ssmdiag.reports import Settings
    from ssmdiag.reports.words import heading

    paths, notes = last_checkpoints(expand_run(paths))
    if len(paths) < 2:
        raise SsmdiagError(
            "one checkpoint alone has nothing to be compared with.",
            expected="two or more, or a directory of numbered checkpoints",
            advice="`ssmdiag inspect` reports on one.",
        )
    target, _ = terminal.claim_outputs(output, reads=[*paths, map_file])
    strict = strict or tolerance is not None
    if strict and len(paths) != 2:
        raise SsmdiagError(f"--strict compares two checkpoints, {len(paths)} were given.")
    settings = Settings(
        width=terminal.width(),
        colour=format is Format.text and output is None and terminal.colour(color),
        unicode=output is not None or terminal.unicode(),
        plots=plots,
        all_layers=all_layers,
        quiet=quiet,
    )
    asked = _Asked(
        assume=parse_assumptions(assume or []),
        families=load_families(map_file),
        device=choose_device(device),
        length=length,
        text=format is Format.text,
        settings=settings,
        notes=notes,
    )
    if strict:
        text, code = _prove(paths[0], paths[1], asked, tolerance)
    elif notes or (len(paths) == 2 and not _same_model(paths[0], paths[1], asked)):
        text, code = _models(paths, asked, fail_on, "they are the last checkpoints of different runs" if notes else "")
    else:
        try:
            text, code = _run(paths, asked, memory, fail_on)
        except DifferentModelsError as error:
            text, code = _models(paths, replace(asked, notes=(*asked.notes, error.seen)), fail_on, error.seen)
    if asked.text:
        text = heading(asked.guess, settings.width) + text
    terminal.emit(text, target, colours=settings.colour)
    raise typer.Exit(code)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What holds for every checkpoint."""

    assume: Mapping[str, str]
    families: Sequence[Family]
    device: str
    length: int | None
    text: bool
    settings: Settings
    notes: tuple[str, ...]
    """Which checkpoint stands for a directory of a run."""

    @property
    def guess(self) -> str | None:
        """Warning that an unreviewed map file is used."""
        from ssmdiag.families.recognition import guess_of

        return guess_of(self.families)


def _same_model(a: Path, b: Path, asked: _Asked) -> bool:
    from ssmdiag.compare.models import same_structure

    try:
        return same_structure(a, b, assume=asked.assume, families=asked.families)
    except CheckpointError:
        return True  # the comparison of a run reports which checkpoints cannot be read


def _prove(a: Path, b: Path, asked: _Asked, tolerance: float | None) -> tuple[str, int]:
    from ssmdiag.compare.conversion import prove_conversion
    from ssmdiag.reports.compare.conversion import conversion_report
    from ssmdiag.reports.compare.json import conversion_document
    from ssmdiag.reports.json import render

    proof = prove_conversion(
        a,
        b,
        tolerance=tolerance,
        assume=asked.assume,
        families=asked.families,
        device=asked.device,
        context_length=asked.length,
        notes=asked.notes,
    )
    if asked.text:
        return conversion_report(proof, asked.settings), proof.exit_code()
    return render(conversion_document(proof) | {"guess": asked.guess}), proof.exit_code()


def _models(paths: list[Path], asked: _Asked, fail_on: FailOn, why: str) -> tuple[str, int]:
    """Return two models side by side, or a table of more."""
    from ssmdiag.compare.models import compare_models, tabulate_models
    from ssmdiag.reports.compare.json import models_document, table_document
    from ssmdiag.reports.compare.models import models_report, table_report
    from ssmdiag.reports.json import render

    if fail_on is not FailOn.never:
        raise SsmdiagError(
            f"--fail-on {fail_on.value} looks for a trend, and different models are no run"
            f"{f': {why}' if why else ''}{'' if why.endswith('.') else '.'}",
            expected="checkpoints of one run",
            advice="leave --fail-on away to see the models beside each other.",
        )
    if len(paths) > 2:
        table = tabulate_models(
            paths,
            assume=asked.assume,
            families=asked.families,
            device=asked.device,
            context_length=asked.length,
            notes=asked.notes,
        )
        if asked.text:
            return table_report(table, asked.settings), table.exit_code()
        return render(table_document(table) | {"guess": asked.guess}), table.exit_code()
    pair = compare_models(
        paths[0],
        paths[1],
        assume=asked.assume,
        families=asked.families,
        device=asked.device,
        context_length=asked.length,
        notes=asked.notes,
    )
    if asked.text:
        return models_report(pair, asked.settings), pair.exit_code()
    return render(models_document(pair) | {"guess": asked.guess}), pair.exit_code()


def _run(paths: list[Path], asked: _Asked, memory: Memory, fail_on: FailOn) -> tuple[str, int]:
    from ssmdiag.compare.run import compare_run
    from ssmdiag.reports.compare.json import run_document
    from ssmdiag.reports.compare.run import report
    from ssmdiag.reports.json import render

    progress = _Progress(asked.settings.quiet)
    try:
        run = compare_run(
            paths,
            assume=asked.assume,
            families=asked.families,
            device=asked.device,
            context_length=asked.length,
            memory=memory.value,
            on_checkpoint=progress.update,
        )
    finally:
        progress.close()
    if asked.text:
        return report(run, asked.settings), run.exit_code(fail_on.value)
    return render(run_document(run) | {"guess": asked.guess}), run.exit_code(fail_on.value)


class _Progress:
    """A line on stderr every few seconds, overwritten where stderr is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.last = time.monotonic()
        self.open = False

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self.quiet or done == total or now - self.last < (0.2 if self.open and sys.stderr.isatty() else 2):
            return
        self.last = now
        self.open = True
        said = f"{done} of {total} checkpoints"
        print(said, end="\r" if sys.stderr.isatty() else "\n", file=terminal.drawing(), flush=True)

    def close(self) -> None:
        if self.open and sys.stderr.isatty():
            print(" " * 40, end="\r", file=terminal.drawing(), flush=True)
