"""`ssmdiag retrain`: the same model under several maps, or with its recurrence frozen, side by side."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from ssmdiag.cli import terminal
from ssmdiag.cli.counts import a_count
from ssmdiag.cli.options import (
    Also,
    Assume,
    Color,
    ComputeDevice,
    Plots,
    Quiet,
    choose_device,
    only_here,
    parse_assumptions,
)
from ssmdiag.cli.outputs import Outputs, claim, require_folder
from ssmdiag.cli.process import import_torch, silence_other_ranks
from ssmdiag.cli.training_watch import Watch
from ssmdiag.errors import ConfigurationError
from ssmdiag.printable import printable

if TYPE_CHECKING:
    from types import FrameType

    from ssmdiag.reports import Settings
    from ssmdiag.retrain.results import RetrainResult


Format = Literal["text", "json", "markdown", "html", "svg"]
"""Values of --format."""
REFERENCE = "exp"
"""What a single --param is compared with: the map of S4, S4D, LRU and Mamba."""


def retrain(
    context: typer.Context,
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=only_here,
            metavar="[PATH]",
            help="A checkpoint retrain saved, or a directory of transformers, to go on from.",
        ),
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            metavar="MAP",
            help="Map of the rates: direct, relu, exp, softplus, sigmoid, heavy-tail, best, …  [default: best; "
            "heavy-tail for your own model]",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="What to learn.  [default: lf-poly, or what --text or --data say]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model", metavar="MODEL", help="s4d or lru, built in; or package.module:function, which returns a Module."
        ),
    ] = "s4d",
    freeze: Annotated[
        list[str] | None,
        typer.Option("--freeze", metavar="WHAT", help="none, eigenvalues, step or both keep their initial value."),
    ] = None,
    lr: Annotated[
        list[float] | None, typer.Option("--lr", metavar="RATE", help="Learning rate.  [default: 0.01]")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", metavar="N", help="Seed of weights and batches.  [default: 0]")
    ] = None,
    init: Annotated[
        list[str] | None, typer.Option("--init", metavar="START", help="Initial memory: family, short or long.")
    ] = None,
    recurrence_lr: Annotated[
        list[float] | None, typer.Option("--recurrence-lr", metavar="RATE", help="Learning rate of the recurrence.")
    ] = None,
    weight_decay: Annotated[
        list[float] | None,
        typer.Option(
            "--weight-decay",
            metavar="X",
            help="On every weight; of your own model, on all but the recurrence's.  [default: 0]",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="STEPS", parser=a_count(0), help="Training steps of every arm.")
    ] = 1000,
    batch: Annotated[int, typer.Option("--batch", metavar="N", parser=a_count(), help="Sequences a step.")] = 128,
    width: Annotated[int, typer.Option("--width", metavar="N", parser=a_count(), help="Channels.")] = 64,
    modes: Annotated[
        int,
        typer.Option("--modes", metavar="N", parser=a_count(), help="Modes of a channel; one of each conjugate pair."),
    ] = 32,
    depth: Annotated[int, typer.Option("--depth", metavar="N", parser=a_count(), help="Residual blocks.")] = 1,
    length: Annotated[
        int | None,
        typer.Option(
            "--length",
            "--context",
            metavar="STEPS",
            parser=a_count(2, context=True),
            help="Sequence length; the task's own by default.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", parser=a_count(), help="Training sequences; the task's own by default."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option("--text", metavar="FILE", help="What a language model or --task text learns.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="An .npz with x and y, or package.module:function."),
    ] = None,
    assume: Assume = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Keep checkpoints and a resumable state here.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --output.")] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            "--checkpoint-every", metavar="STEPS", parser=a_count(), help="Keep a checkpoint every so many steps."
        ),
    ] = None,
    perturb: Annotated[
        bool, typer.Option("--perturb", help="Add each arm's loss with noise on its trained rates.")
    ] = False,
    together: Annotated[
        int, typer.Option("--together", metavar="N", parser=a_count(), help="Arms trained as one batch.")
    ] = 12,
    format: Annotated[Format, typer.Option("--format", "-f", help="Form of the comparison.")] = "text",
    also: Also = None,
    plots: Plots = True,
    color: Color = "auto",
    device: ComputeDevice = "auto",
    quiet: Quiet = False,
) -> None:
    """Train one model under several maps or with a frozen recurrence, and compare loss and memory.

    Arms are all combinations of the options that can be given several times: the same initial function, the same
    batches, the same number of steps. One --param is compared with exp.
    """
    silence_other_ranks()
    import_torch()
    from ssmdiag.cli.retraining import Asked, experiment, options_given
    from ssmdiag.output.writer import keep_streams_off
    from ssmdiag.retrain.allocation import keep_freed_memory
    from ssmdiag.retrain.arms import OWN, Budget, product_of
    from ssmdiag.retrain.comparison import compare
    from ssmdiag.retrain.distributed import joined
    from ssmdiag.retrain.interruption import InterruptedTraining, on_ending_signals, signal_of
    from ssmdiag.retrain.run_folder import require_apart

    def stop(number: int, frame: FrameType | None) -> None:
        raise InterruptedTraining(number)

    settings = terminal.settings(color, text=format == "text", plots=plots, quiet=quiet)
    require_folder(output)
    with joined("cuda" if device == "cuda" else "cpu") as ranks:
        if resume and output is None:
            raise ConfigurationError("--resume: there is nothing to resume from.", expected="--output DIR of the run")
        asked = Asked(
            path, model, task, text, data, length, samples, width, modes, depth, together,
            parse_assumptions(assume or []), output, options_given(context),
        )  # fmt: skip
        asked.require_possible(steps=steps, batch=batch)
        asked.reject_ignored_options()
        if asked.foreign:
            terminal.let_others_draw()
        maps = list(dict.fromkeys(param or [asked.usual_map()]))
        reference = OWN if path or asked.foreign else REFERENCE
        maps = [reference, *maps] if len(maps) == 1 and maps != [reference] and not freeze else maps
        arms = product_of(
            maps, freeze=freeze, lr=lr, seed=seed, init=init, recurrence_lr=recurrence_lr, weight_decay=weight_decay
        )
        reads = [Path(read) for read in (path, text, data) if read is not None and os.path.exists(read)]
        keep_streams_off(reads)
        places = claim(None, also if ranks.first else None, format=format, known=get_args(Format), reads=reads)
        if output is not None:
            require_apart(output, arms, reads)
        budget = Budget(steps, batch, validate_every=max(1, min(50, steps // 20)), checkpoint_every=checkpoint_every)
        watch = Watch(quiet or not ranks.first, len(ranks.share(arms) if ranks.spreads(arms) else arms))
        keep_freed_memory()
        try:
            with on_ending_signals(stop):
                choose_device(device)
                result = compare(
                    experiment(asked, arms, budget),
                    folder=output,
                    resume=resume,
                    ranks=ranks,
                    perturb=perturb,
                    on_progress=watch.update,
                )
        except KeyboardInterrupt as interruption:
            watch.close()
            known = getattr(interruption, "result", None)
            if ranks.first and known is not None and any(arm.history for arm in known.arms):
                _show(known, places, settings)
            if ranks.first:
                terminal.remark(_how_to_go_on(output))
            raise SystemExit(128 + signal_of(interruption)) from None
        finally:
            watch.close()
        if ranks.first:
            _show(result, places, settings)


def _how_to_go_on(output: Path | None) -> str:
    from ssmdiag.retrain.run_folder import can_resume

    if output is None:
        return "stopped; nothing was kept: with --output DIR the same command and --resume would go on from here"
    if can_resume(output):
        return f"stopped; the same command with --resume goes on from {printable(str(output))}"
    return "stopped before there was anything to keep"


def _show(result: RetrainResult, places: Outputs, settings: Settings) -> None:
    from ssmdiag.reports.page import main_picture_of, page_of
    from ssmdiag.reports.retrain import json, markdown, text
    from ssmdiag.reports.svg import alone

    places.write(
        {
            "text": lambda settings: text.report(result, settings),
            "json": lambda settings: json.render(result),
            "markdown": lambda settings: markdown.render(result),
            "html": lambda settings: page_of(result, command=settings.command).document(),
            "svg": lambda settings: alone(main_picture_of(result)),
        },
        settings,
    )
