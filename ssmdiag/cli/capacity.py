"""`ssmdiag capacity PATH`: how far back, and how accurately, the input can be rebuilt from the state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.options import (
    Assume,
    Color,
    ComputeDevice,
    Device,
    EveryChannel,
    Format,
    Length,
    MapFile,
    Output,
    Plots,
    Quiet,
    ReportFormat,
    check_length,
    choose_device,
    load_families,
    parse_assumptions,
    read_layers,
)
from ssmdiag.cli.terminal import Colour
from ssmdiag.errors import LayerError
from ssmdiag.guard import guard

if TYPE_CHECKING:
    from ssmdiag.capacity.rounding import Rounding
    from ssmdiag.recurrence.modal import Recurrence
    from ssmdiag.reports.capacity_text import CapacityLayer


class Int8Scale(StrEnum):
    """Values of --int8-scale."""

    state = "state"
    channel = "channel"
    layer = "layer"


class State(StrEnum):
    """Values of --state-dtype."""

    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"
    float32 = "float32"


def capacity(
    path: Annotated[Path, typer.Argument(help="A checkpoint.", show_default=False)],
    layer: Annotated[
        str | None,
        typer.Option("--layer", help="Number or path of one layer; then also its step Δ scaled by ½, 1, 2 and 4."),
    ] = None,
    length: Length = None,
    state_dtype: Annotated[
        State | None,
        typer.Option(
            "--state-dtype", help="What the state is rounded to at every step; by default as the weights are stored."
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
            help="Its standard deviation; says which states are too small for the format.",
            show_default=False,
        ),
    ] = None,
    int8_scale: Annotated[
        Int8Scale, typer.Option("--int8-scale", help="What shares one scale of an int8 state.")
    ] = Int8Scale.state,
    wanted: Annotated[
        int | None,
        typer.Option(
            "--for-length",
            metavar="STEPS",
            min=1,
            callback=check_length,
            help="Which steps Δ would rebuild inputs so far back.",
        ),
    ] = None,
    every_channel: EveryChannel = False,
    format: ReportFormat = Format.text,
    output: Output = None,
    assume: Assume = None,
    map_file: MapFile = None,
    plots: Plots = True,
    color: Color = Colour.auto,
    device: ComputeDevice = Device.auto,
    quiet: Quiet = False,
) -> None:
    """Report how far back and how accurately inputs can be rebuilt from the state, and what rounding leaves of it.

    Length: the farthest input a linear readout rebuilds to one half. Effective modes: what survives a rounded state.
    """
    from ssmdiag.assessment.memory import DEFAULT_CONTEXT
    from ssmdiag.checkpoint import read_checkpoint
    from ssmdiag.diagnosis import context_length_of
    from ssmdiag.families.recognition import recognise
    from ssmdiag.reports import Settings
    from ssmdiag.reports.capacity_text import document, report
    from ssmdiag.reports.words import heading

    rounding = _assume(input_mean, input_scale, int8_scale)
    target, _ = terminal.claim_outputs(output, reads=[path, map_file])
    checkpoint = read_checkpoint(path)
    found = recognise(
        checkpoint,
        assume=parse_assumptions(assume or []),
        families=load_families(map_file),
        device=choose_device(device),
    )
    found.require_layers(checkpoint)
    known = length or context_length_of(checkpoint.settings)
    context = known or DEFAULT_CONTEXT
    most = None if every_channel else 64
    state = state_dtype and state_dtype.value
    layers: list[CapacityLayer] = []
    problems: list[LayerError] = []
    for part in found.layers if layer is None else [None]:
        try:
            recurrences = read_layers(found.layers, layer) if part is None else part.read()
        except LayerError as error:
            problems.append(error)
            continue
        for one in recurrences:
            try:
                with guard(one.layer, "its capacity"):
                    own = _assess(one, context, state, most, rounding, closely=layer is not None, wanted=wanted)
                    layers.append(own)
            except LayerError as error:
                problems.append(error)
    if not layers:
        raise problems[0]
    if format is Format.json:
        content = document(str(path), layers, context) | {"guess": found.guess}
        terminal.emit(json.dumps(content, indent=2) + "\n", target)
        _exit(checkpoint.problems, problems)
    settings = Settings(
        width=terminal.width(),
        colour=output is None and terminal.colour(color),
        unicode=output is not None or terminal.unicode(),
        plots=plots,
        quiet=quiet,
    )
    text = heading(found.guess, settings.width) + report(str(path), layers, context, known is not None, settings)
    terminal.emit(text, target, colours=settings.colour)
    _exit(checkpoint.problems, problems)


def _assume(mean: float, scale: float | None, int8_scale: Int8Scale) -> Rounding:
    """Return the assumptions on the input and on an int8 state."""
    from ssmdiag.capacity.rounding import Rounding

    try:
        return Rounding(input_mean=mean, input_scale=scale, int8_scale=int8_scale.value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _exit(unread: Sequence[str], problems: Sequence[LayerError]) -> None:
    """Print what could not be read and exit with 2, or with 0 where everything was read."""
    for sentence in unread:
        terminal.remark(f"not read: {sentence}")
    for problem in problems:
        terminal.remark(f"left out: {problem.sentence}")
    raise typer.Exit(2 if unread or problems else 0)


def _assess(
    recurrence: Recurrence,
    context: int,
    state: str | None,
    most: int | None,
    rounding: Rounding,
    *,
    closely: bool,
    wanted: int | None,
) -> CapacityLayer:
    from ssmdiag.capacity.capacity import (
        WORK,
        affordable_channels,
        assess_capacity,
        initial_capacities,
        summarise_capacity,
    )
    from ssmdiag.capacity.noise import complete
    from ssmdiag.capacity.timescale import trade_off
    from ssmdiag.recurrence.channels import sample_channels
    from ssmdiag.reports.capacity_text import CapacityLayer

    most = recurrence.channels if most is None else affordable_channels(recurrence.modes, most, 4 * WORK)
    sample = sample_channels(recurrence, most)
    whole = complete(rounding, recurrence)
    initial = initial_capacities(recurrence, context, state_dtype=state, rounding=rounding)
    scaled = trade_off(sample, context, state_dtype=state, rounding=rounding, whole=recurrence) if closely else {}
    return CapacityLayer(
        name=recurrence.layer,
        family=recurrence.family,
        time_invariant=recurrence.time_invariant,
        channels=recurrence.channels,
        modes=recurrence.modes,
        own=summarise_capacity(assess_capacity(sample, context, state_dtype=state, rounding=whole)),
        initial={name: summarise_capacity(own) for name, own in initial.items()},
        steps={factor: summarise_capacity(own) for factor, own in scaled.items()},
        wanted=_recommend(sample, wanted, state, whole) if wanted else None,
        states_used=_states_used(sample),
    )


def _recommend(recurrence: Recurrence, wanted: int, state: str | None, rounding: Rounding) -> dict[str, Any]:
    """Return the range of factors on Δ that gives a length, over the channels that can reach it."""
    from ssmdiag.capacity.timescale import recommend_step

    found = recommend_step(recurrence, wanted, state_dtype=state, rounding=rounding)
    able = found.reachable
    count, total = int(able.sum()), len(able)
    result: dict[str, Any] = {"length": wanted, "channels": count, "of": total, "lowest": None, "highest": None}
    if not count:
        best = found.memory[~found.memory.isnan()]
        most = f" (the best reaches {float(best.max()):.2f})" if best.numel() else ""
        sentence = f"no step Δ makes any of {total:,} channels rebuild inputs {wanted:,} steps back to one half{most}."
        return result | {"sentence": sentence}
    low, high = float(found.lowest[able].median()), float(found.highest[able].median())
    result |= {"lowest": low, "highest": high}
    sentence = (
        f"to rebuild inputs {wanted:,} steps back to one half, multiply Δ by {low:.3g} … {high:.3g} (median over "
    )
    return result | {"sentence": f"{sentence}the {count:,} of {total:,} channels that can)."}


def _states_used(recurrence: Recurrence) -> float | None:
    from ssmdiag.capacity.hankel import hankel_singular_values

    if not recurrence.time_invariant or recurrence.layout == "none":
        return None
    used = hankel_singular_values(recurrence).states_for(0.999)
    used = used[~used.isnan()]
    return float(used.median()) if used.numel() else None
