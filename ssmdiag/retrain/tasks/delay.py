"""Delay: repeat the input of d steps ago, for several d at once (P2, arXiv 2510.00563)."""

from __future__ import annotations

import torch

from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

LENGTH, SAMPLES, VALIDATION = 256, 4_096, 512


def delays_for(length: int) -> tuple[int, ...]:
    """Return the delays of the targets: powers of two up to half the sequence.

    >>> delays_for(256)
    (1, 2, 4, 8, 16, 32, 64, 128)
    """
    return tuple(2**k for k in range(length.bit_length()) if 2 ** (k + 1) <= length)


def make(settings: TaskSettings) -> TaskData:
    """Return uniform noise in [−1, 1] and, for each delay, the noise so many steps later, zero before it starts."""
    length = settings.length or LENGTH
    count = settings.samples or SAMPLES
    generator = torch.Generator().manual_seed(settings.seed)
    x = 2 * torch.rand(count + VALIDATION, length, generator=generator) - 1
    delays = delays_for(length)
    y = torch.stack([torch.nn.functional.pad(x, (delay, 0))[:, :length] for delay in delays], -1)
    x = x[..., None]
    return TaskData(x[:count], y[:count], x[count:], y[count:], "squared error", "every step", outputs=len(delays))


TASKS = (Task("delay", "the input of 1, 2, 4, … steps ago", "P2, arXiv 2510.00563", make),)
