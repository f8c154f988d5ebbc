"""`ssmdiag compare PATH PATH…`: checkpoints of a run, different models, or a conversion that is to be proven."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import (
    FORMATS,
    AllLayers,
    Also,
    Assume,
    Color,
    ComputeDevice,
    Full,
    Length,
    MapFile,
    Output,
    Plots,
    Quiet,
    ReportFormat,
    choose_device,
    load_families,
    parse_assumptions,
    parse_location,
)
from ssmdiag.cli.outputs import Report, claim
from ssmdiag.cli.progress import Progress
from ssmdiag.errors import CheckpointError, DifferentModelsError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.checkpoint.location import Location
    from ssmdiag.reports import Settings
else:
    Location = Path


FailOn = Literal["never", "crossing", "converging"]
"""Values of --fail-on."""


@dataclass(frozen=True)
class _Compared:
    """What was found, and how it is written."""

    result: Any
    report: Callable[[Any, Settings], str]
    document: Callable[[Any], dict[str, Any]]
    code: int

    def reports(self, guess: str | None) -> dict[str, Report]:
        """Return how it is written in each format."""
        from ssmdiag.reports.json import render
        from ssmdiag.reports.page import main_picture_of, page_of
        from ssmdiag.reports.svg import alone
        from ssmdiag.reports.words import heading

        return {
            "text": lambda settings: heading(guess, settings.width) + self.report(self.result, settings),
            "json": lambda settings: render(self.document(self.result) | {"guess": guess}),
            "html": lambda settings: page_of(self.result, guess=guess, command=settings.command).document(),
            "svg": lambda settings: alone(main_picture_of(self.result)),
        }


def compare(
    paths: Annotated[
        list[Location],
        typer.Argument(
            metavar="PATH",
            parser=parse_location,
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
    ] = "never",
    format: ReportFormat = None,
    output: Output = None,
    also: Also = None,
    length: Length = None,
    memory: Annotated[
        Literal["none", "ends", "all"],
        typer.Option("--memory", help="Checkpoints of a run at which horizon and decay law are found."),
    ] = "ends",
    assume: Assume = None,
    map_file: MapFile = None,
    full: Full = False,
    all_layers: AllLayers = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
) -> None:
    """Say which layers of a run converge to the stability boundary, and when they reach it.

    Two different models: what memory one has that the other lacks; of more, a table. With --strict: whether a
    conversion kept the memory.
    """
    from ssmdiag.compare.conversion import prove_conversion
    from ssmdiag.compare.models import compare_models, same_structure, tabulate_models
    from ssmdiag.compare.run import compare_run
    from ssmdiag.compare.run_order import expand_run, last_checkpoints
    from ssmdiag.families.recognition import guess_of
    from ssmdiag.reports.compare import conversion, json, models, run

    given = paths
    paths, notes = last_checkpoints(expand_run(paths))
    places = claim(output, also, format=format, known=FORMATS, reads=[*paths, map_file])
    strict = strict or tolerance is not None
    if len(given) > 1 and len(set(paths)) == 1 and not strict:
        raise SsmdiagError(
            f"{given[0]} is given twice."
            if len(set(given)) == 1
            else f"{' and '.join(map(str, given[:2]))} are one and the same checkpoint.",
            expected="two or more different ones",
            advice=f"{shlex.join(['ssmdiag', 'inspect', str(paths[0])])} reports on one.",
        )
    if len(paths) < 2:
        raise SsmdiagError(
            "one checkpoint alone has nothing to be compared with.",
            expected="two or more, or a directory of numbered checkpoints",
            advice=f"{shlex.join(['ssmdiag', 'inspect', *map(str, paths)])} reports on one.",
        )
    if strict and len(paths) != 2:
        raise SsmdiagError(f"--strict compares two checkpoints, {len(paths)} were given.")
    families, assumed, place = load_families(map_file), parse_assumptions(assume), choose_device(device)

    def side_by_side(why: str, notes: Sequence[str]) -> _Compared:
        if fail_on != "never":
            raise SsmdiagError(
                f"--fail-on {fail_on} looks for a trend, and different models are no run"
                f"{f': {why}' if why else ''}{'' if why.endswith('.') else '.'}",
                expected="checkpoints of one run",
                advice="leave --fail-on away to see the models beside each other.",
            )
        if len(paths) > 2:
            table = tabulate_models(
                paths, assume=assumed, families=families, device=place, context_length=length, notes=notes
            )
            return _Compared(table, models.table_report, json.table_document, table.exit_code())
        pair = compare_models(
            *paths, assume=assumed, families=families, device=place, context_length=length, notes=notes
        )
        return _Compared(pair, models.models_report, json.models_document, pair.exit_code())

    def is_one_model() -> bool:
        try:
            return same_structure(*paths, assume=assumed, families=families)
        except CheckpointError:
            return True  # the comparison of a run reports which checkpoints cannot be read

    found: _Compared
    if strict:
        proof = prove_conversion(
            *paths,
            tolerance=tolerance,
            assume=assumed,
            families=families,
            device=place,
            context_length=length,
            notes=notes,
        )
        found = _Compared(proof, conversion.conversion_report, json.conversion_document, proof.exit_code())
    elif notes or (len(paths) == 2 and not is_one_model()):
        found = side_by_side("they are the last checkpoints of different runs" if notes else "", notes)
    else:
        try:
            with Progress("checkpoints", quiet=quiet) as progress:
                history = compare_run(
                    paths,
                    assume=assumed,
                    families=families,
                    device=place,
                    context_length=length,
                    memory=memory,
                    on_checkpoint=progress.update,
                )
            found = _Compared(history, run.report, json.run_document, history.exit_code(fail_on))
        except DifferentModelsError as error:
            found = side_by_side(error.seen, (*notes, error.seen))
    looks = {"plots": plots, "full": full, "all_layers": all_layers, "quiet": quiet}
    settings = terminal.settings(color, output, text=places.format == "text", **looks)
    places.write(found.reports(guess_of(families)), settings)
    raise typer.Exit(found.code)
