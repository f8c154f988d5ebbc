"""Sequential digits: scikit-learn's 8×8 images, read pixel by pixel; the class is read off the last step.

A stand-in for the papers' sequential MNIST, which would have to be downloaded.
"""

from __future__ import annotations

import importlib

import torch

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

PIXELS = 64


def make(settings: TaskSettings) -> TaskData:
    """Return sequences of 64 pixels in [0, 1] and their classes; a fifth is for validation."""
    if settings.length not in (None, PIXELS):
        raise ConfigurationError(
            f"--length {settings.length:,}: an image has {PIXELS} pixels.", advice="leave it out; delay has any length."
        )
    try:
        load_digits = importlib.import_module("sklearn.datasets").load_digits
    except ImportError as error:
        raise ConfigurationError("--task digits needs scikit-learn.", advice="pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(settings.seed))
    x = torch.as_tensor(images / 16).float()[order][..., None]
    y = torch.as_tensor(labels).long()[order]
    held_out = len(y) // 5
    count = min(settings.samples or len(y), len(y) - held_out)
    return TaskData(
        x[held_out:][:count], y[held_out:][:count], x[:held_out], y[:held_out],
        "cross-entropy", "last step", outputs=10,
    )  # fmt: skip


TASKS = (Task("digits", "sequential digits, 64 steps, 10 classes", "scikit-learn's digits", make),)
