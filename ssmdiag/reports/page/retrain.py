"""A comparison of arms as a page: verdict, losses and memory of every arm, curves, learned kernels, noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssmdiag.reports import words
from ssmdiag.reports.drawing.axis import Axis
from ssmdiag.reports.drawing.plot import Curve, Plot, thinned
from ssmdiag.reports.page.diagnosis import versions
from ssmdiag.reports.page.page import Cell, Page, State, at, digits, margin, steps
from ssmdiag.reports.retrain.json import document
from ssmdiag.reports.retrain.laws import law_remark
from ssmdiag.reports.retrain.words import answer, setting_of, settings_of

if TYPE_CHECKING:
    from ssmdiag.reports.drawing.picture import Picture
    from ssmdiag.retrain.results import ArmResult, RetrainResult

MOST_CURVES = 6
DEPTH = 60
"""Decibels below the peak of the target's kernel that are drawn."""


def page(result: RetrainResult, *, command: str = "") -> Page:
    """Return the page of a comparison."""
    names = _names(result)
    data = document(result)
    done = result.interrupted_at is None and any(run.final_loss is not None for run in result.arms)
    state: State = "plain" if done else "error"
    made = Page(f"{result.task}, {result.model}: arms compared", answer(result), state)
    made.heading("Losses")
    levels = list(dict.fromkeys(level for arm in data["arms"] for level in arm["steps_to_level"]))
    heads = [
        "arm", "learning rate", "seed", "final loss", "best loss", "diverged at step", "stopped at step",
        *(f"steps to {level}" for level in levels), "kernel error", "noise borne", "ms a step",
    ]  # fmt: skip
    rows = [[name, *_losses(arm, levels)] for name, arm in zip(names, data["arms"], strict=True)]
    states = ["error" if run.diverged_at is not None else "" for run in result.arms]
    made.table("Validation losses of every arm", heads, rows, states)
    _windows(made, data["learning_rate_windows"])
    made.heading("Memory")
    heads = [
        "arm",
        *(
            f"{what}, {when}"
            for what in ("half-life, slowest", "margin", "horizon", "length")
            for when in ("before", "after")
        ),
    ]
    rows = [[name, *_memory(arm["memory"])] for name, arm in zip(names, data["arms"], strict=True)]
    made.table("Of all layers of an arm: the longest, in steps, and the smallest margin 1−|λ̄|", heads, rows)
    made.remarks([*(law_remark(run, name) or "" for run, name in zip(result.arms, names, strict=True)), *result.notes])
    made.heading("Pictures")
    made.gallery(_pictures(result, names))
    kept = [[name, arm["checkpoint"]] for name, arm in zip(names, data["arms"], strict=True) if arm["checkpoint"]]
    if kept:
        made.heading("Checkpoints")
        made.table("The last of each arm", ["arm", "file"], kept)
    settings = {
        "task": data["task"], "model": data["model"], "training steps": data["steps"],
        "sequences a step": result.budget.batch, "steps of a sequence": data["context_length"],
        "interrupted at step": data["interrupted_at"],
    }  # fmt: skip
    made.settings(command, {**settings, **versions(data)})
    return made


def main_picture(result: RetrainResult) -> Picture | None:
    """Return the losses over training."""
    return next(_pictures(result, _names(result)), None)


def _names(result: RetrainResult) -> list[str]:
    """Return a name for each arm: setting, and learning rate and seed where they differ."""
    settings = {setting_of(arm): name for arm, name in settings_of([run.arm for run in result.arms]).items()}
    rates, seeds = {run.arm.lr for run in result.arms}, {run.arm.seed for run in result.arms}
    return [
        settings[setting_of(run.arm)]
        + (f", lr {run.arm.lr:g}" if len(rates) > 1 else "")
        + (f", seed {run.arm.seed}" if len(seeds) > 1 else "")
        for run in result.arms
    ]


def _losses(arm: Mapping[str, Any], levels: Sequence[str]) -> list[Any]:
    seconds = arm["seconds_per_step"]
    return [
        digits(arm["lr"]), str(arm["seed"]), digits(arm["final_loss"]), digits(arm["best_loss"]), arm["diverged_at"],
        arm["interrupted_at"], *(arm["steps_to_level"].get(level) for level in levels),
        digits(at(arm, "kernel", "error")), digits(at(arm, "perturbation", "borne")),
        Cell(f"{1e3 * seconds:.3g}", seconds) if seconds else None,
    ]  # fmt: skip


def _memory(memory: Mapping[str, Any]) -> list[Any]:
    cells: list[Any] = []
    for what in (
        ("half_life", "max"),
        ("margin",),
        ("horizon", "max"),
        ("capacity", "over_channels", "length_half", "max"),
    ):
        for when in ("before", "after"):
            known = [value for layer in memory[when] if (value := at(layer, *what)) is not None]
            pick = min if what == ("margin",) else max
            value = pick(known, key=float, default=None)
            cells.append(margin(value) if what == ("margin",) else steps(value))
    return cells


def _windows(made: Page, windows: Sequence[Mapping[str, Any]]) -> None:
    if not any(len(window["rates"]) > 1 for window in windows):
        return
    heads = ["map", "frozen", "start", "best final loss", "at learning rate", "decades that are usable"]
    rows = [
        [w["param"], w["freeze"], w["init"], digits(w["best_final_loss"]), digits(w["best_rate"]), digits(w["decades"])]
        for w in windows
    ]
    made.table("Over learning rates", heads, rows)


def _pictures(result: RetrainResult, names: Sequence[str]) -> Iterator[Picture]:
    runs = sorted(zip(result.arms, names, strict=True), key=lambda pair: _final(pair[0]))[:MOST_CURVES]
    left = len(result.arms) - len(runs)
    some = f" The {len(runs)} of {len(result.arms):,} arms that ended lowest." if left else ""
    losses = [
        Curve(name, thinned([(float(p.step), p.loss) for p in run.history if p.loss > 0 and math.isfinite(p.loss)]))
        for run, name in runs
    ]
    if any(curve.points for curve in losses):
        yield Plot(
            title="Validation loss over training",
            about=f"Logarithmic; the lower, the better.{some}",
            x=Axis("training step"),
            y=Axis("loss, logarithmic", "log"),
            curves=[curve for curve in losses if curve.points],
        )
    yield from _kernels(result, runs, some)
    noisy = [(run.perturbation, name) for run, name in runs if run.perturbation]
    if noisy:
        yield Plot(
            title="Loss with noise on the rates",
            about=f"Worst validation loss with noise up to β on the weights of the rates; β = 0 is in the table.{some}",
            x=Axis("β, logarithmic", "log"),
            y=Axis("loss, logarithmic", "log"),
            curves=[
                Curve(name, [(b, w) for b, w in zip(one.betas, one.worst, strict=True) if math.isfinite(w)])
                for one, name in noisy
            ],
        )


def _kernels(result: RetrainResult, runs: Sequence[tuple[ArmResult, str]], some: str) -> Iterator[Picture]:
    learned = [(run.kernel.values, name) for run, name in runs if run.kernel]
    peak = max(map(abs, result.target), default=0.0)
    if not learned or not peak:
        return
    count = len(result.target)
    lags = sorted({round(math.expm1(math.log1p(count - 1) * k / 80)) for k in range(81)})
    curves = [
        Curve(
            name,
            [(float(lag), 20 * math.log10(abs(v) / peak)) for lag in lags if (v := values[lag]) and math.isfinite(v)],
        )
        for values, name in [(result.target, "target"), *learned]
    ]
    yield Plot(
        title="Learned kernels",
        about=f"|K| in dB below the peak of the target, at {len(lags)} of {words.plural(count, 'lag')}.{some}",
        x=Axis("lag in steps", "log1p", low=0.0),
        y=Axis("dB", low=-float(DEPTH), high=5.0),
        curves=[Curve(c.name, c.points, "dots") if c.name == "target" else c for c in curves],
    )


def _final(run: ArmResult) -> float:
    return run.final_loss if run.final_loss is not None else math.inf
