"""`ssmdiag kernel PATH`: memory kernels to a file, or one layer's kernel and its decay law on the screen."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import Device, choose_device, load_families, parse_assumptions
from ssmdiag.cli.terminal import Colour
from ssmdiag.errors import SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.recurrence import Recurrence


class Format(StrEnum):
    """Values of --format."""

    text = "text"
    json = "json"


def kernel(
    path: Annotated[Path, typer.Argument(help="A checkpoint.", show_default=False)],
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Number or path of one layer; by default all to a file, the first shown."),
    ] = None,
    channel: Annotated[int | None, typer.Option("--channel", min=0, help="One channel of the layer.")] = None,
    length: Annotated[
        int | None,
        typer.Option("--length", metavar="STEPS", min=1, help="Lags; by default the context of config.json."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write kernels to this .safetensors or .npz.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="Form of what is shown.")] = Format.text,
    assume: Annotated[
        list[str] | None, typer.Option("--assume", metavar="KEY=VALUE", help="Settle what tensors cannot tell.")
    ] = None,
    map_file: Annotated[
        Path | None, typer.Option("--map", metavar="MAP.TOML", help="Declare the tensors of an unknown model.")
    ] = None,
    plots: Annotated[bool, typer.Option("--plots/--no-plots", help="Draw the kernel with its laws.")] = True,
    color: Annotated[Colour, typer.Option("--color", help="Colour the report.")] = Colour.auto,
    device: Annotated[Device, typer.Option("--device", help="Where to compute; auto is the CPU.")] = Device.auto,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="The answer alone; no progress.")] = False,
) -> None:
    """Extract the memory kernels K_t, or show one layer's with the law it decays by.

    A selective layer has no kernel; the retention at its nominal point, the mean of |λ̄|^t over modes, stands for it.
    """
    from ssmdiag.channels import select_channel
    from ssmdiag.checkpoint import read_checkpoint
    from ssmdiag.diagnosis import context_length_of
    from ssmdiag.families.recognition import recognise
    from ssmdiag.memory import DEFAULT_CONTEXT, assess_memory
    from ssmdiag.reports import Settings
    from ssmdiag.reports.kernel_text import document, report

    checkpoint = read_checkpoint(path)
    found = recognise(
        checkpoint,
        assume=parse_assumptions(assume or []),
        families=load_families(map_file),
        device=choose_device(device),
    )
    found.require_layers(checkpoint)
    known = context_length_of(checkpoint.settings)
    context = length or known or DEFAULT_CONTEXT
    recurrences = [recurrence for entry in found.layers for recurrence in entry.read()]
    if layer is not None:
        recurrences = choose_layer(recurrences, layer)
    if channel is not None:
        recurrences = [_one_channel(select_channel, recurrence, channel) for recurrence in recurrences[:1]]
    if output is not None:
        from ssmdiag.kernel.file import write_kernels

        written = write_kernels(recurrences, context, output, source=checkpoint, quiet=quiet or not sys.stderr.isatty())
        terminal.emit(f"{output}: {written}\n", None)
        return
    memory = assess_memory(recurrences[0], context)
    said = context if (length or known) else None
    if format is Format.json:
        terminal.emit(json.dumps(document(memory, path=str(path), channel=channel), indent=2) + "\n", None)
        return
    settings = Settings(
        width=terminal.width(), colour=terminal.colour(color), unicode=terminal.unicode(), plots=plots, quiet=quiet
    )
    terminal.emit(report(memory, settings, path=str(path), channel=channel, stated_context=said), None)


def choose_layer(recurrences: list[Recurrence], wanted: str) -> list[Recurrence]:
    """Return the recurrences of one layer, named by its number or its path. Raises SsmdiagError."""
    from ssmdiag.reports.folding import label_layers

    names = [recurrence.layer for recurrence in recurrences]
    labels = label_layers(names)
    chosen = [
        recurrence
        for recurrence, name, label in zip(recurrences, names, labels, strict=True)
        if wanted in (label, name, label.partition(" ")[0], name.partition(" ")[0])
    ]
    if not chosen:
        some = ", ".join([*labels[:12], *["…"][: len(labels) - 12]])
        raise SsmdiagError(f"--layer {wanted}: there is no such layer.", expected=f"one of {some}, or a full path")
    return chosen


def _one_channel(select, recurrence: Recurrence, channel: int) -> Recurrence:  # type: ignore[no-untyped-def]
    try:
        return select(recurrence, channel)
    except IndexError as error:
        raise SsmdiagError(f"--channel {channel}: {error}.") from error
