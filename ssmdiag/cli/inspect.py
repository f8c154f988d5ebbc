"""`ssmdiag inspect PATH…`: the report."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import Device, choose_device, load_families, parse_assumptions
from ssmdiag.cli.terminal import Colour
from ssmdiag.errors import AssumptionError, SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.diagnosis import Diagnosis
    from ssmdiag.reports import Failure


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
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report to this file.")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", metavar="STEPS", min=1, help="Context length; by default what config.json says."),
    ] = None,
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
            help="Horizon and law of every channel, not of 256 a layer; seconds for large models.",
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
    from ssmdiag.reports import Settings, render

    assumptions = parse_assumptions(assume or [])
    settings = Settings(
        width=terminal.width(),
        colour=format is Format.text and output is None and terminal.colour(color),
        unicode=output is not None or terminal.unicode(),
        plots=plots,
        all_layers=all_layers,
        quiet=quiet,
        verbose=verbose,
    )
    results = [_diagnose(path, assumptions, map_file, length, every_channel, device, quiet) for path in paths]
    shown = [result for result in results if format is not Format.text or not _failed(result)]
    if shown:
        terminal.emit(render(shown, format, settings), output)
    for result in results:
        if _failed(result) and format is Format.text:
            print(render([result], "text", settings), end="", file=sys.stderr)
    raise typer.Exit(max(_exit_code(result) for result in results))


def _diagnose(
    path: Path,
    assume: dict[str, str],
    map_file: Path | None,
    length: int | None,
    every_channel: bool,
    device: Device,
    quiet: bool,
) -> Diagnosis | Failure:
    from ssmdiag.checkpoint import read_checkpoint
    from ssmdiag.diagnosis import MOST_CHANNELS, diagnose
    from ssmdiag.reports import Failure

    families = load_families(map_file)
    progress = _Progress(path.name, quiet)
    try:
        return diagnose(
            read_checkpoint(path),
            assume=assume,
            families=families,
            device=choose_device(device),
            context_length=length,
            most_channels=None if every_channel else MOST_CHANNELS,
            on_layer=progress.update,
        )
    except AssumptionError:
        raise
    except SsmdiagError as error:
        return Failure(str(path), type(error).__name__, error.seen, error.expected, error.advice)
    finally:
        progress.close()


def _failed(result: object) -> bool:
    from ssmdiag.reports import Failure

    return isinstance(result, Failure)


def _exit_code(result: Diagnosis | Failure) -> int:
    from ssmdiag.reports import Failure

    return 2 if isinstance(result, Failure) else result.exit_code()


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
            print(f"{self.name}: reading layer {done} of {total} …", file=sys.stderr)
            self.advance = lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import Progress

        bar = Progress(console=Console(stderr=True), transient=True)
        task = bar.add_task(self.name, total=total)
        bar.start()
        self.stop = bar.stop
        self.advance = lambda done, total: bar.update(task, completed=done)
