"""`ssmdiag probe`: what a live model retains of real texts, and how far back its answers use them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssmdiag.cli import messages, terminal
from ssmdiag.cli.counts import a_count
from ssmdiag.cli.options import (
    FORMATS,
    Also,
    Assume,
    Color,
    ComputeDevice,
    Full,
    Output,
    Plots,
    Quiet,
    ReportFormat,
    choose_device,
    only_here,
    parse_assumptions,
)
from ssmdiag.cli.outputs import claim
from ssmdiag.cli.process import import_torch, silence_other_ranks
from ssmdiag.cli.progress import Progress

if TYPE_CHECKING:
    from ssmdiag.cli.probing import Sample, Source
    from ssmdiag.probing.probe import ProbedMemory

Dtype = Literal["auto", "float32", "bfloat16", "float16", "float64"]
"""Values of --dtype."""


def probe(
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=only_here,
            metavar="[DIR]",
            help="A directory that transformers' save_pretrained wrote, or a run's of them: its newest.",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", metavar="FILE", help="What the model reads; several are one sample.")
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option("--compare", metavar="FILE", help="Another text, measured by itself and shown below."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FUNCTION", help="package.module:function, which returns a Module, for DIR."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FUNCTION", help="package.module:function, which returns batches, for --text."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            "--context",
            metavar="STEPS",
            parser=a_count(2, context=True),
            help="Tokens of every text that is read.  [default: 1,024 on a CPU, 4,096 on a GPU]",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            "--texts",
            metavar="N",
            parser=a_count(),
            help="Texts of that length, most.  [default: 4 on a CPU, 16 on a GPU]",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", parser=a_count(), help="Texts at once; by default what is cheap to hold."),
    ] = None,
    cuts: Annotated[
        int,
        typer.Option(
            "--cuts",
            metavar="N",
            parser=a_count(0),
            help="Passes of half a text for the use of the past; 0: leave it out.",
        ),
    ] = 6,
    channels: Annotated[
        int, typer.Option("--channels", metavar="N", parser=a_count(), help="Channels of a layer, most.")
    ] = 64,
    positions: Annotated[
        int, typer.Option("--positions", metavar="N", parser=a_count(), help="Positions of a text, most.")
    ] = 128,
    state_channels: Annotated[
        int,
        typer.Option(
            "--state-channels", metavar="N", parser=a_count(0), help="Channels stepped with a rounded state; 0: none."
        ),
    ] = 32,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of where texts are cut and resampled.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="What weights are cast to; auto: as they are stored.")
    ] = "auto",
    device_map: Annotated[
        str | None,
        typer.Option(
            "--device-map", metavar="MAP", help="`auto`: transformers spreads a large model over the devices there are."
        ),
    ] = None,
    assume: Assume = None,
    format: ReportFormat = None,
    output: Output = None,
    also: Also = None,
    full: Full = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
) -> None:
    """Run a model on real texts, and report what its layers retain and how far back its answers use them.

    Checkpoints of selective models tell their memory with the gates at rest; this measures it. Any module that answers
    at every step has its use measured, an LSTM or attention too.
    """
    silence_other_ranks()
    import_torch()
    from ssmdiag.cli.probing import Asked
    from ssmdiag.reports.json import render
    from ssmdiag.reports.page import main_picture_of, page_of
    from ssmdiag.reports.probe.json import document
    from ssmdiag.reports.probe.text import report
    from ssmdiag.reports.svg import alone
    from ssmdiag.retrain.distributed import joined

    with joined("cuda" if device == "cuda" else "cpu") as ranks:
        reads = [path, *(text or ()), *(compare or ())]
        first = (output, also) if ranks.first else (None, None)
        places = claim(*first, format=format, known=FORMATS, reads=reads)
        choose_device(device)
        asked = Asked(
            path, model, data, tuple(text or ()), tuple(compare or ()), length, texts, batch,
            ranks.device, device_map, dtype, seed, ranks,
        )  # fmt: skip
        asked.require_possible()
        source = asked.source()
        options: dict[str, Any] = {"channels": channels, "positions": positions, "cuts": cuts, "seed": seed}
        options |= {"state_channels": state_channels}
        options |= {"assume": parse_assumptions(assume), "gather": ranks.gather}
        quiet = quiet or not ranks.first
        found = [(sample.shown, _measured(source, sample, options, quiet)) for sample in asked.samples(source)]
    if not ranks.first:
        return
    (shown, memory), *others = found
    settings = terminal.settings(color, output, text=places.format == "text", plots=plots, full=full, quiet=quiet)
    places.write(
        {
            "text": lambda settings: report(memory, shown, settings, others),
            "json": lambda settings: render(document(memory, shown, others)),
            "html": lambda settings: page_of(memory, shown, others, command=settings.command).document(),
            "svg": lambda settings: alone(main_picture_of(memory)),
        },
        settings,
    )
    messages.remark_problems("note", source.notes)
    raise typer.Exit(2 if any(_lacks(memory, cuts) for _, memory in found) else 0)


def _lacks(memory: ProbedMemory, cuts: int) -> bool:
    """Whether a layer was not observed, or the use of the past not measured though that was asked for."""
    return any(layer.observed is None for layer in memory.layers) or (
        memory.use is None and (cuts > 0 or not memory.layers)
    )


def _measured(source: Source, sample: Sample, options: Mapping[str, Any], quiet: bool) -> ProbedMemory:
    from ssmdiag.probing.probe import probe as measure

    with Progress(sample.shown.name, quiet=quiet) as progress:

        def say(what: str, done: int, total: int | None) -> None:
            progress.of(f"{sample.shown.name}, {what}", done, total or done + 1)

        return measure(source.model, sample.batches, length=sample.length, on_progress=say, **options)
