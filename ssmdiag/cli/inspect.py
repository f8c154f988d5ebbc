"""`ssmdiag inspect PATH…`: the report."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.diagnosing import Options, diagnose_paths, exit_code, report
from ssmdiag.cli.options import (
    AllLayers,
    Assume,
    Color,
    ComputeDevice,
    EveryChannel,
    Length,
    Lines,
    MapFile,
    Paths,
    Plots,
    Quiet,
    choose_device,
    parse_assumptions,
)

Format = Literal["text", "json", "jsonl"]
"""Values of --format."""


def inspect(
    paths: Paths,
    format: Annotated[Format, typer.Option("--format", "-f", help="Format of the report.")] = "text",
    output: Lines = None,
    length: Length = None,
    assume: Assume = None,
    map_file: MapFile = None,
    every_channel: EveryChannel = False,
    all_layers: AllLayers = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also module paths and the tensors read.")] = False,
) -> None:
    """Report how long each recurrent layer of a checkpoint remembers.

    Exit 0: read. Exit 2: a path, or part of one, could not be read; what could be is still reported.
    """
    assumptions = parse_assumptions(assume)
    target, _ = terminal.claim_outputs(output, reads=[*paths, map_file], format=format)
    looks = {"plots": plots, "all_layers": all_layers, "quiet": quiet, "verbose": verbose}
    settings = terminal.settings(color, output, text=format == "text", **looks)
    options = Options(assumptions, map_file, choose_device(device), length, every_channel)
    results = report(diagnose_paths(paths, options, quiet=quiet), format, settings, target)
    raise typer.Exit(max(exit_code(result) for result in results))
