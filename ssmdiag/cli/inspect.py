"""`ssmdiag inspect PATH…`: the report."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal, get_args

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.diagnosing import Options, diagnose_paths, report
from ssmdiag.cli.many import Many, said
from ssmdiag.cli.options import (
    AllLayers,
    Also,
    Assume,
    Color,
    ComputeDevice,
    EveryChannel,
    Full,
    Length,
    Lines,
    MapFile,
    Paths,
    Plots,
    Quiet,
    choose_device,
    parse_assumptions,
)
from ssmdiag.cli.outputs import claim
from ssmdiag.cli.path_list import Jobs, OneShard, Resume, RetryErrors

Format = Literal["text", "json", "jsonl", "markdown", "html", "csv", "svg"]
"""Values of --format."""


def inspect(
    paths: Paths,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            help="Format of the report; by default what --output ends in, else text.",
            show_default=False,
        ),
    ] = None,
    output: Lines = None,
    also: Also = None,
    length: Length = None,
    assume: Assume = None,
    map_file: MapFile = None,
    every_channel: EveryChannel = False,
    all_layers: AllLayers = False,
    full: Full = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    jobs: Jobs = None,
    shard: OneShard = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    quiet: Quiet = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also module paths and the tensors read.")] = False,
) -> None:
    """Report how long each recurrent layer of a checkpoint remembers."""
    from ssmdiag.compare.run_order import in_run_order
    from ssmdiag.reports.text import render_read

    many = Many(paths, jobs, shard, resume, retry_errors)
    assumptions = parse_assumptions(assume)
    places = claim(output, also, format=format, known=get_args(Format), reads=[*many.reads, map_file])
    looks = {"plots": plots, "all_layers": all_layers, "quiet": quiet, "verbose": verbose, "full": full}
    settings = terminal.settings(color, output, text=places.format == "text", **looks)
    options = Options(assumptions, map_file, choose_device(device), length, every_channel)
    settings = replace(settings, run=said("inspect", options), several=len(many.own) > 1)
    left = many.left(places.target, settings, places.format, fail_on=None, alone=not places.also)
    left = in_run_order(left) if places.format == "text" else left
    results = diagnose_paths(left, options, quiet=quiet, jobs=jobs)
    report(results, settings, places, tally=many.tally, text=render_read)
    many.finish(None, quiet=quiet)
