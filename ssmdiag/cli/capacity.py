"""`ssmdiag capacity PATH`: how far back, and how accurately, the input can be rebuilt from the state."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ssmdiag.cli import messages, terminal
from ssmdiag.cli.counts import a_count
from ssmdiag.cli.options import (
    FORMATS,
    AllLayers,
    Also,
    Assume,
    Color,
    ComputeDevice,
    EveryChannel,
    Full,
    Length,
    MapFile,
    OnePath,
    Output,
    Plots,
    Quiet,
    ReportFormat,
    check_length,
    choose_device,
    choose_layers,
    read_layers,
    recognise_layers,
)
from ssmdiag.cli.outputs import claim
from ssmdiag.cli.soundness import judge_soundness
from ssmdiag.errors import LayerError
from ssmdiag.guard import guard
from ssmdiag.printable import printable_record


def capacity(
    path: OnePath,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer",
            metavar="LAYER",
            help="Number or path of one layer; then also its step Δ scaled by ½, 1, 2 and 4.",
        ),
    ] = None,
    length: Length = None,
    state_dtype: Annotated[
        Literal["bf16", "fp16", "int8", "float32"] | None,
        typer.Option(
            "--state-dtype", help="Format that the state is rounded to at every step; by default that of the weights."
        ),
    ] = None,
    input_mean: Annotated[
        float,
        typer.Option(
            "--input-mean", metavar="M", help="Mean of the state's input, in its standard deviations, as after SiLU."
        ),
    ] = 0.0,
    input_scale: Annotated[
        float | None,
        typer.Option(
            "--input-scale",
            metavar="S",
            help="Standard deviation of the input, to find states that are too small for the format.",
            show_default=False,
        ),
    ] = None,
    int8_scale: Annotated[
        Literal["state", "channel", "layer"] | None,
        typer.Option(
            "--int8-scale", help="What shares one scale of an int8 state; by default each number has its own."
        ),
    ] = None,
    wanted: Annotated[
        int | None,
        typer.Option(
            "--for-length",
            metavar="STEPS",
            parser=a_count(context=True),
            callback=check_length,
            help="Find the steps Δ that would rebuild inputs this far back.",
        ),
    ] = None,
    every_channel: EveryChannel = False,
    format: ReportFormat = None,
    output: Output = None,
    also: Also = None,
    assume: Assume = None,
    map_file: MapFile = None,
    full: Full = False,
    all_layers: AllLayers = False,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
) -> None:
    """Report how far back and how accurately inputs can be rebuilt from the state, and what rounding leaves of it.

    Length: the farthest input a linear readout rebuilds to one half. Effective modes: what survives a rounded state.
    """
    from ssmdiag.assessment.evidence import CheckpointEvidence
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT
    from ssmdiag.capacity.report import CapacityReport, report_capacity
    from ssmdiag.capacity.rounding import Rounding
    from ssmdiag.diagnosis import context_length_of
    from ssmdiag.families.reading_ahead import read_ahead
    from ssmdiag.reports import words
    from ssmdiag.reports.capacity_text import document, report
    from ssmdiag.reports.json import render
    from ssmdiag.reports.page.capacity import main_picture, page
    from ssmdiag.reports.svg import alone

    try:
        rounding = Rounding(input_mean=input_mean, input_scale=input_scale, int8_scale=int8_scale or "state")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    places = claim(output, also, format=format, known=FORMATS, reads=[path, map_file])
    checkpoint, found, chosen = recognise_layers(path, assume, map_file, device)
    known = length or context_length_of(checkpoint.settings)
    context = known or DEFAULT_CONTEXT
    layers: list[CapacityReport] = []
    problems: list[LayerError] = []
    if layer is None:
        read_ahead(found.layers)
    for part in found.layers if layer is None else [None]:
        try:
            recurrences = read_layers(found.layers, layer) if part is None else part.read()
        except LayerError as error:
            problems.append(error)
            continue
        for one in recurrences:
            try:
                with guard(one.layer, "its capacity"):
                    layers.append(
                        report_capacity(
                            one,
                            context,
                            state_dtype=state_dtype,
                            rounding=rounding,
                            every_channel=every_channel,
                            other_steps=layer is not None,
                            wanted=wanted,
                        )
                    )
            except LayerError as error:
                problems.append(error)
    if not layers:
        raise problems[0]
    only = None if layer is None else choose_layers(found.layers, layer)
    soundness = judge_soundness(checkpoint, found, device=choose_device(device), only=only)
    left_out = [problem.sentence for problem in problems if problem.sentence not in soundness.problems]
    wrong = (*soundness.wrong, *([f"no capacity of {words.plural(len(left_out), 'layer')}"] if left_out else []))
    if int8_scale and all(own.own.state_dtype != "int8" for own in layers):
        raise typer.BadParameter(
            f"the state is not int8 but {layers[0].own.state_dtype}: --state-dtype int8", param_hint="'--int8-scale'"
        )
    looks = {"plots": plots, "full": full, "all_layers": all_layers, "quiet": quiet}
    settings = terminal.settings(color, output, text=places.format == "text", **looks)
    name = str(checkpoint.path)
    attention = CheckpointEvidence(checkpoint, found, context).attention_layers if layer is None else ()
    places.write(
        {
            "text": lambda settings: (
                words.heading(found.guess, settings.width)
                + report(name, layers, context, known is not None, settings, chosen, attention, wrong)
            ),
            "json": lambda settings: render(
                document(name, layers, context, chosen, attention, wrong) | {"guess": found.guess}
            ),
            "html": lambda settings: page(
                *printable_record((layers, name)),
                context,
                found.guess,
                attention,
                stated=known is not None,
                chosen=printable_record(chosen),
                wrong=printable_record(wrong),
                command=settings.command,
            ).document(),
            "svg": lambda settings: alone(main_picture(printable_record(layers))),
        },
        settings,
    )
    messages.remark_problems("not read", soundness.problems)
    messages.remark_problems("left out", left_out)
    raise typer.Exit(2 if soundness.problems or problems else 0)
