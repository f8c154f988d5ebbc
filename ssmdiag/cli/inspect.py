"""`ssmdiag inspect PATH…`: the report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.diagnosing import Asked, diagnose_paths, exit_code, report
from ssmdiag.cli.options import Device, Length, choose_device, parse_assumptions
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
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the report to this file; lines of jsonl are added."),
    ] = None,
    length: Length = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(
            "--assume", metavar="KEY=VALUE", help="Settle what tensors cannot tell; `ssmdiag families` lists them."
        ),
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", metavar="MAP.TOML", help="Declare the tensors of a model ssmdiag does not know."),
    ] = None,
    every_channel: Annotated[
        bool,
        typer.Option(
            "--every-channel",
            help="Horizon and law of every channel, not of 64 a layer; seconds for large models.",
        ),
    ] = False,
    all_layers: Annotated[
        bool, typer.Option("--all", help="One row per layer: do not fold layers that repeat.")
    ] = False,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the pictures.")] = True,
    color: Annotated[Colour, typer.Option("--color", help="Colour the report.")] = Colour.auto,
    device: Annotated[
        Device, typer.Option("--device", help="Where to compute; auto is the CPU, which reading waits for.")
    ] = Device.auto,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone.")] = False,
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
