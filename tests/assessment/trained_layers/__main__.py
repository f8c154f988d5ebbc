"""Train small models of every family on every task, and hold what ssmdiag says of their decay against their kernels.

    python -m tests.assessment.trained_layers                          # 1,000 steps each, into a temporary folder
    python -m tests.assessment.trained_layers --folder F --steps 2000  # kept in F; what is there is judged as it is

Two contexts: the length of the sequences that were trained on, and the one that is looked over where none is given.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from ssmdiag.assessment.memory import DEFAULT_CONTEXT
from tests.assessment.trained_layers.judging import Tally, judge
from tests.assessment.trained_layers.layers import FAMILIES
from tests.assessment.trained_layers.training import TASKS, Trained, read_trained, train

COLUMNS = ("law", "tail", "curve", "lags")
HEADING = f"{'family':10} {'task':8} {'loss':>15}   {'channels':>8} {' '.join(f'{name:>5}' for name in COLUMNS)}"
HEADING += f"   {'layers':>6} {' '.join(f'{name:>5}' for name in COLUMNS)}   {'wrong':>5}"


def trained_models(folder: Path, *, families: Iterable[str], tasks: Iterable[str], steps: int) -> Iterable[Trained]:
    """Yield a trained model of every family on every task; those that stand in the folder are not trained again."""
    for family in families:
        for task in tasks:
            there = folder / f"{family}-{task}.safetensors"
            yield read_trained(there) if there.exists() else train(family, task, folder, steps=steps)


def row(name: str, task: str, losses: str, channels: Tally, layers: Tally) -> str:
    """Return a line of the table."""
    cells = [" ".join(f"{getattr(part, name):5}" for name in COLUMNS) for part in (channels, layers)]
    wrong = len(channels.wrong) + len(layers.wrong)
    return f"{name:10} {task:8} {losses:>15}   {channels.count:8} {cells[0]}   {layers.count:6} {cells[1]}   {wrong:5}"


def report(models: Iterable[Trained], context: int | None) -> tuple[Tally, Tally]:
    """Print a line for each model and one for all; return the sums over channels and over layers."""
    print(f"\ncontext: {context:,} lags" if context else "\ncontext: as long as the sequences trained on")
    print(HEADING)
    channels, layers = Tally(), Tally()
    for model in models:
        found = judge(model, context or model.length)
        print(row(model.family, model.task, f"{model.start:.3g} → {model.end:.2g}", *found), flush=True)
        channels, layers = channels + found[0], layers + found[1]
    print(row("all", "", "", channels, layers))
    for part, what in ((channels, "channels"), (layers, "layers")):
        print(
            f"{part.either / part.count:.0%} of {what} have a law or a tail, {part.any / part.count:.0%} one or a curve"
        )
    for wrong in (*channels.wrong, *layers.wrong):
        print(f"wrong: {wrong}")
    return channels, layers


def main() -> None:
    """Train, judge, print; exit with 1 where a statement is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--task", action="append", choices=TASKS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        families, tasks = asked.family or FAMILIES, asked.task or TASKS
        folder = asked.folder or Path(temporary)
        models = list(trained_models(folder, families=families, tasks=tasks, steps=asked.steps))
        found = [tally for context in (None, DEFAULT_CONTEXT) for tally in report(models, context)]
    raise SystemExit(any(tally.wrong for tally in found))


if __name__ == "__main__":
    main()
