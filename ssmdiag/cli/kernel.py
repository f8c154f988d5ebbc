"""`ssmdiag kernel PATH`: memory kernels to a file, or one layer's kernel and its decay law on the screen."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import messages, terminal
from ssmdiag.cli.options import (
    FORMATS,
    Also,
    Assume,
    Color,
    ComputeDevice,
    Full,
    Length,
    MapFile,
    OnePath,
    Plots,
    Quiet,
    ReportFormat,
    choose_device,
    choose_layers,
    read_layers,
    recognise_layers,
)
from ssmdiag.cli.outputs import claim, suffix_of
from ssmdiag.cli.progress import Progress
from ssmdiag.cli.soundness import judge_soundness
from ssmdiag.errors import LayerError, SsmdiagError
from ssmdiag.guard import guard
from ssmdiag.printable import printable_record

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence.modal import Recurrence


def check_memory_limit(gib: float) -> float:
    """Return an amount of memory. Raises BadParameter for what is none."""
    if not gib <= MOST_MEMORY:
        raise typer.BadParameter(f"{gib:g} is not a number of GiB up to {MOST_MEMORY:,}.")
    return gib


MOST_MEMORY = 2**20
"""GiB; more than any machine has."""
WRITTEN = (".safetensors", ".npz")
"""Suffixes of --output that name a file of kernels."""
NAMED = (".svg", ".html", ".json")
REPORTED = (*NAMED, ".htm")
"""Suffixes of --output that name a report of one layer, and no file of kernels."""
TOO_LARGE = "--memory-limit GIB allows more; --channel, or a smaller --length, asks for less."


def kernel(
    path: OnePath,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="LAYER",
            help="Number or path of one layer, or the path's start; by default all to a file, the first shown.",
        ),
    ] = None,
    channel: Annotated[
        int | None, typer.Option("--channel", metavar="N", min=0, help="One channel of the layer.")
    ] = None,
    length: Length = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write kernels to this .safetensors or .npz, or the report to this .svg, .html or .json.",
        ),
    ] = None,
    memory_limit: Annotated[
        float,
        typer.Option(
            "--memory-limit",
            metavar="GIB",
            min=0.001,
            callback=check_memory_limit,
            help="Most memory for the kernel of one layer; with --output.",
        ),
    ] = 2.0,
    format: ReportFormat = None,
    also: Also = None,
    assume: Assume = None,
    map_file: MapFile = None,
    full: Full = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
) -> None:
    """Extract the memory kernels K_t, or show one layer's with the law it decays by.

    A selective layer has no kernel; its retention with gates at rest, the mean of |λ̄|^t over modes, is shown instead.
    """
    from ssmdiag.assessment.evidence import CheckpointEvidence
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT, assess_memory
    from ssmdiag.diagnosis import context_length_of
    from ssmdiag.reports.folding import label_layers
    from ssmdiag.reports.kernel_text import Shown, document, file_report, render, report
    from ssmdiag.reports.page.kernel import main_picture, page
    from ssmdiag.reports.svg import alone
    from ssmdiag.reports.words import heading

    reported = output is None or suffix_of(output) in REPORTED
    if output is not None and output.suffix not in WRITTEN and not reported:
        raise SsmdiagError(
            f"--output {output}: unknown ending.",
            expected=f"one of {', '.join((*WRITTEN, *NAMED))}",
            instead=(str(output), str(output.with_suffix(WRITTEN[-1]))),
        )
    places = claim(output if reported else None, also, format=format, known=FORMATS, reads=[path, map_file])
    if also and not reported:
        raise SsmdiagError("--also: kernels are written, and no report.", expected="--output FILE.svg, .html or .json")
    checkpoint, found, chosen = recognise_layers(path, assume, map_file, device)
    stated = length or context_length_of(checkpoint.settings)
    context = stated or DEFAULT_CONTEXT
    looks = {"plots": plots, "full": full, "quiet": quiet}
    settings = terminal.settings(color, output if reported else None, text=places.format == "text", **looks)
    asked = _Chosen(found.layers, layer, channel)
    if output is not None and not reported:
        from ssmdiag.kernel.file import write_kernels
        from ssmdiag.kernel.kernel import KernelSizeError

        try:
            with Progress("kernels, layers", quiet=quiet) as progress, closing(asked.all(progress)) as recurrences:
                written = write_kernels(
                    recurrences,
                    context,
                    output,
                    source=checkpoint,
                    channel=channel,
                    memory_limit=int(memory_limit * 2**30),
                )
        except KernelSizeError as error:
            raise KernelSizeError(error.seen, advice=TOO_LARGE) from error
        text = file_report(written, settings, output=str(output), stated_context=stated)
        terminal.emit(heading(found.guess, settings.width) + text, None, colours=settings.colour)
        problems, unread = [*asked.problems, *written.problems], tuple(checkpoint.problems)
    else:
        recurrence, branches = asked.first()
        with guard(recurrence.layer, "its kernel"):
            memory = assess_memory(recurrence, context, every_passing=True)
        only = None if layer is None else choose_layers(found.layers, layer)
        soundness = judge_soundness(checkpoint, found, device=choose_device(device), only=only)
        shown = Shown(str(checkpoint.path), channel, stated, tuple(branches), chosen=chosen, wrong=soundness.wrong)
        if layer is None:
            shown = replace(
                shown,
                layers=tuple(one.family.title for one in found.layers),
                label=label_layers([one.path for one in found.layers])[len(asked.problems)],
                skipped=len(asked.problems),
                attention_layers=CheckpointEvidence(checkpoint, found, context).attention_layers,
            )
        places.write(
            {
                "text": lambda settings: heading(found.guess, settings.width) + report(memory, settings, shown),
                "json": lambda settings: render(document(memory, shown) | {"guess": found.guess}),
                "html": lambda settings: page(
                    *printable_record((memory, shown)), found.guess, command=settings.command
                ).document(),
                "svg": lambda settings: alone(main_picture(printable_record(memory))),
            },
            settings,
        )
        problems, unread = [], soundness.problems
    messages.remark_problems("not written", [problem.sentence for problem in problems])
    messages.remark_problems("not read", unread)
    raise typer.Exit(2 if unread or problems else 0)


@dataclass
class _Chosen:
    """The layers of a checkpoint, with the selected layers and channel."""

    layers: Sequence[Layer]
    layer: str | None
    channel: int | None
    problems: list[LayerError] = field(default_factory=list)
    """Layers that could not be read, of several."""

    def first(self) -> tuple[Recurrence, list[str]]:
        """Return the recurrence to show, and the names of all recurrences of its layer.

        Where none was asked for, it is of the first layer that can be read. Raises LayerError where none can.
        """
        if self.layer is not None:
            found = read_layers(self.layers, self.layer)
        else:
            for layer in self.layers:
                try:
                    found = layer.read()
                    break
                except LayerError as error:
                    self.problems.append(error)
            else:
                raise self.problems[0]
        return self.narrow(found[0]), [recurrence.layer for recurrence in found]

    def all(self, progress: Progress) -> Generator[Recurrence]:
        """Return all selected recurrences, read one layer at a time.

        Raises SsmdiagError for a channel of several layers, LayerError where none can be read.
        """
        if self.layer is not None:
            return (self.narrow(recurrence) for recurrence in read_layers(self.layers, self.layer))
        if self.channel is not None and len(self.layers) > 1:
            raise SsmdiagError(
                f"--channel {self.channel}: the checkpoint has {len(self.layers):,} layers.",
                expected="--layer as well, with --output",
            )
        return self._each(progress)

    def _each(self, progress: Progress) -> Generator[Recurrence]:
        from ssmdiag.families.reading_ahead import read_ahead

        read_ahead(self.layers)
        for position, layer in enumerate(self.layers):
            progress.update(position, len(self.layers))
            try:
                found = layer.read()
            except LayerError as error:
                self.problems.append(error)
                if len(self.problems) == len(self.layers):
                    raise
            else:
                yield from map(self.narrow, found)

    def narrow(self, recurrence: Recurrence) -> Recurrence:
        """Return the selected channel. Raises SsmdiagError where no channel has that number."""
        from ssmdiag.recurrence.channels import select_channel

        if self.channel is None:
            return recurrence
        try:
            return select_channel(recurrence, self.channel)
        except IndexError as error:
            last = recurrence.channels - 1
            raise SsmdiagError(f"--channel {self.channel}: {error}.", instead=(str(self.channel), str(last))) from error
