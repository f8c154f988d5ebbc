"""`ssmdiag inspect PATH…`: the report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.diagnosing import Asked, diagnose_paths, exit_code, report
from ssmdiag.cli.options import (
    AllLayers,
    Assume,
    Color,
    ComputeDevice,
    Device,
    EveryChannel,
    Length,
    Lines,
    MapFile,
    Plots,
    Quiet,
    choose_device,
    parse_assumptions,
)
from ssmdiag.cli.terminal import Colour


class Format(StrEnum):
    """Values of --format."""

    text = "text"
    json = "json"
    jsonl = "jsonl"


def inspect(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH", help="Checkpoint files, shard indexes or model directories.", show_default=False
        ),
    ],
    format: Annotated[Format, typer.Option("--format", "-f", help="Form of the report.")] = Format.text,
    output: Lines = None,
    length: Length = None,
    assume: Assume = None,
    map_file: MapFile = None,
    every_channel: EveryChannel = False,
    all_layers: AllLayers = False,
    plots: Plots = True,
    color: Color = Colour.auto,
    device: ComputeDevice = Device.auto,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also module paths and the tensors read.")] = False,
) -> None:
    """Report how long each recurrent layer of a checkpoint remembers.

    Exit 0: read. Exit 2: a path, or part of one, could not be read; what could be is still reported.
    """
    from ssmdiag.reports import Settings

    assumptions = parse_assumptions(assume or [])
    target, _ = terminal.claim_outputs(output, reads=[*paths, map_file], format=format)
    settings = Settings(
        width=terminal.width(),
        colour=format is Format.text and output is None and terminal.colour(color),
        unicode=output is not None or terminal.unicode(),
        plots=plots,
        all_layers=all_layers,
        quiet=quiet,
        verbose=verbose,
    )
    asked = Asked(assumptions, map_file, choose_device(device), length, every_channel)
    results = report(diagnose_paths(paths, asked, quiet=quiet), format, settings, target)
    raise typer.Exit(max(exit_code(result) for result in results))
