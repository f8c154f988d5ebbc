"""`ssmdiag check PATH…`: findings alone, and an exit code for CI."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.diagnosing import Options, diagnose_paths, exit_code, report
from ssmdiag.cli.many import Many, said
from ssmdiag.cli.options import (
    Also,
    Assume,
    Color,
    ComputeDevice,
    EveryChannel,
    Full,
    Isolated,
    Length,
    Lines,
    MapFile,
    Paths,
    choose_device,
    parse_assumptions,
)
from ssmdiag.cli.outputs import claim
from ssmdiag.cli.path_list import Jobs, OneShard, Resume, RetryErrors
from ssmdiag.cli.process import working_folder
from ssmdiag.errors import SsmdiagError
from ssmdiag.reports import declares, formats

if TYPE_CHECKING:
    from ssmdiag.check.configuration import Configuration
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.errors import Failure


if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[formats()]
    """Values of --format."""
FailOn = Literal["error", "warning", "note"]
"""Values of --fail-on."""


def check(
    paths: Paths,
    fail_on: Annotated[
        FailOn | None,
        typer.Option("--fail-on", help="Least severity that exits 1; error unless configured.", show_default=False),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option("--select", metavar="RULE", help="Run only these: SSM101, SSM1 for all of 1xx, or a name."),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", metavar="RULE", help="Do not run these.")] = None,
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="Format of the findings; text unless configured.", show_default=False),
    ] = None,
    output: Lines = None,
    also: Also = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FILE", help="Known findings: only new or worse ones fail."),
    ] = None,
    write_baseline: Annotated[
        bool, typer.Option("--write-baseline", help="Record the findings in the baseline.")
    ] = False,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", metavar="FILE", help="What `ssmdiag probe -f json` observed of the model: judged too."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Settings, in place of the nearest ssmdiag.toml."),
    ] = None,
    isolated: Isolated = False,
    length: Length = None,
    assume: Assume = None,
    map_file: MapFile = None,
    every_channel: EveryChannel = False,
    full: Full = False,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    jobs: Jobs = None,
    shard: OneShard = None,
    resume: Resume = False,
    retry_errors: RetryErrors = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only checkpoints with findings, and no advice.")
    ] = False,
) -> None:
    """Look for what is wrong with a checkpoint's memory, and fail a build that has it."""
    from ssmdiag.check.configuration import read_configuration
    from ssmdiag.compare.run_order import in_run_order
    from ssmdiag.probing.saved import read_probe
    from ssmdiag.reports.check_text import render_each

    many = Many(paths, jobs, shard, resume, retry_errors)
    settings_ = read_configuration(working_folder(), config, isolated).overridden(
        select=select, ignore=ignore, fail_on=fail_on, context_length=length, baseline=baseline
    )
    if write_baseline and settings_.baseline is None:
        raise SsmdiagError(
            "--write-baseline: there is no baseline to write.", expected="--baseline FILE, or baseline in ssmdiag.toml"
        )
    places = claim(
        output,
        also,
        format=format,
        known=formats(),
        usual=settings_.format,
        reads=[*many.reads, map_file, settings_.path, probe],
        baseline=settings_.baseline,
    )
    options = Options(
        parse_assumptions(assume),
        map_file,
        choose_device(device),
        settings_.context_length,
        every_channel,
        settings_.selection(),
        tails=any(declares(form, "TAILS") for form in places.formats),
        probe=read_probe(probe) if probe else None,
    )
    looks = {"quiet": quiet, "full": full}
    settings = terminal.settings(color, output, text=places.format == "text", fail_on=settings_.fail_on, **looks)
    settings = replace(settings, run=said("check", options, settings_, probe), several=len(many.own) > 1)
    alone = not places.also and settings_.baseline is None
    left = many.left(places.target, settings, places.format, fail_on=settings_.fail_on, alone=alone)
    left = in_run_order(left) if places.format == "text" else left
    diagnosed = diagnose_paths(left, options, quiet=quiet, jobs=jobs)
    diagnosed = _against_baseline(diagnosed, settings_, write_baseline)
    report(diagnosed, settings, places, tally=many.tally, fail_on=settings_.fail_on, text=render_each)
    many.finish(settings_.fail_on, quiet=quiet)


def _against_baseline(
    results: Generator[Diagnosis | Failure], configuration: Configuration, write: bool
) -> Generator[Diagnosis | Failure]:
    """Yield the results, with findings in the baseline moved to `known`; update its file at the end.

    With `write`, results wait until all have been read.
    """
    if configuration.baseline is None:
        yield from results
        return
    from ssmdiag.check.baseline import Baseline, compare_results
    from ssmdiag.check.baseline_file import keep_baseline, read_baseline

    path = configuration.baseline
    known = Baseline() if write and not path.exists() else read_baseline(path)
    whole: list[Diagnosis | Failure] = []
    with closing(results):
        for result in results:
            whole.append(result)
            if not write:
                yield from compare_results([result], known)[0]
    marked, comparison = compare_results(whole, known)
    read = all(exit_code(result) == 0 for result in whole)
    clean = all(exit_code(result, configuration.fail_on) == 0 for result in marked)
    remark = keep_baseline(path, comparison, accept=write, successful=read and (write or clean), environment=os.environ)
    if write:
        yield from compare_results(whole, comparison.updated(accept=True))[0]
    if remark:
        terminal.remark(remark)
