"""Speed of a training step: python -m tests.benchmarks.retrain_speed [--device cuda] [--length 100]

Ratios are taken in one run, the two sides in turn, on whatever else the machine is doing; nothing is asserted.
On the CPU the time is that of the processor, not of the clock, and torch is given one thread: others at work on
the machine lengthen neither side.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from ssmdiag.retrain.allocation import keep_freed_memory
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.ensemble_trainee import EnsembleTrainee
from ssmdiag.retrain.model import ModelSettings
from ssmdiag.retrain.recurrences import S4D, MapsOfArms
from ssmdiag.retrain.tasks import TaskData, TaskSettings, find_task
from tests.retrain.published import direct_kernel as published_kernel

BATCH, ARMS = 128, 12

Step = Callable[[], object]


def in_turn(sides: Mapping[str, Step], device: str, rounds: int) -> dict[str, float]:
    """Return the fastest seconds of each side, after a round to warm up."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, step in sides.items():
            begun = clock()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(clock() - begun)
    return {name: min(values[1:]) for name, values in seconds.items()}


def stepper(arms: tuple[Arm, ...], data: TaskData, settings: ModelSettings, device: str) -> Step:
    """Return a training step of some arms together."""
    trainee = EnsembleTrainee(arms, data, settings, BATCH, ranks=Ranks(device=device))
    numbers = itertools.count()

    def step() -> None:
        trainee.losses(next(numbers))
        trainee.update(1.0, [True] * len(arms))

    return step


def published_apply(p: Mapping[str, Tensor], maps: MapsOfArms, u: Tensor) -> Tensor:
    """Return K ∗ u + D u as the published code computes it: exp(ℓ t) for every lag, FFTs of twice the length."""
    steps = u.shape[2]
    kernel = published_kernel(p, maps, steps)
    first = u.permute(0, 3, 1, 2)
    spectrum = torch.fft.rfft(first, n=2 * steps) * torch.fft.rfft(kernel, n=2 * steps)[:, :, None]
    y = torch.fft.irfft(spectrum, n=2 * steps)[..., :steps] + first * p["D"][:, :, None, None]
    return y.permute(0, 2, 3, 1)


def published(step: Step) -> Step:
    """Return the step with recurrence, gate and linear maps as the published code has them."""

    def linear(x: Tensor, weight: Tensor, bias: Tensor, *, steps_fastest: bool = False) -> Tensor:
        return x @ weight[:, None].mT + bias[:, None, None]

    def slow() -> None:
        with (
            mock.patch.object(S4D, "apply", published_apply),
            mock.patch("ssmdiag.retrain.model.gate", lambda z: functional.glu(z, -1)),
            mock.patch("ssmdiag.retrain.model.linear", linear),
        ):
            step()

    return slow


def direct_kernel(step: Step) -> Step:
    """Return the step with nothing but the kernel of the published code."""

    def slow() -> None:
        with mock.patch.object(S4D, "kernel", published_kernel):
            step()

    return slow


def main() -> None:
    """Print the figures of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
        print(f"freed memory is kept: {keep_freed_memory()}")
    data = find_task("lf-poly").make(TaskSettings(length=given.length, samples=BATCH * 4))
    print(f"torch {torch.__version__}, {given.device}, {given.length} steps, batch {BATCH}")
    arm = (Arm("best"),)
    for recurrence in ("s4d", "lru"):
        settings = ModelSettings(recurrence)
        step = stepper(arm, data, settings, given.device)
        sides = {"ours": step}
        if recurrence == "s4d":
            sides |= {"the kernel as published": direct_kernel(step), "all as published": published(step)}
        seconds = in_turn(sides, given.device, given.rounds)
        print(f"{settings.title}: {1e3 * seconds['ours']:.1f} ms a step")
        for name in list(sides)[1:]:
            print(f"  {name}: {1e3 * seconds[name]:.1f} ms, {seconds[name] / seconds['ours']:.2f} times ours")
    for settings in (ModelSettings("s4d", 8, 8), ModelSettings("s4d", 16, 16), ModelSettings("s4d")):
        arms = tuple(Arm("best", lr=1e-3 * (1 + k)) for k in range(ARMS))
        alone = [stepper((one,), data, settings, given.device) for one in arms]
        together = stepper(arms, data, settings, given.device)
        sides = {"together": together, "in sequence": lambda alone=alone: [step() for step in alone]}  # type: ignore[misc]
        seconds = in_turn(sides, given.device, max(2, given.rounds // 2))
        print(
            f"{settings.title}, {ARMS} arms: {1e3 * seconds['together']:.0f} ms together, in sequence "
            f"{1e3 * seconds['in sequence']:.0f} ms, {seconds['in sequence'] / seconds['together']:.2f} times"
        )


if __name__ == "__main__":
    main()
