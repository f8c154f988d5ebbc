"""Text: the next byte of a file, at every step; its last tenth is for validation."""

from __future__ import annotations

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.next_token import next_token_data
from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

SAMPLES = 8_192
"""Sequences of a file that has so many: 2 MB at the usual length."""
BYTES = 256


def make(settings: TaskSettings) -> TaskData:
    """Return windows of the file's bytes and the bytes that follow. Raises ConfigurationError without a file."""
    if settings.path is None:
        raise ConfigurationError("--task text needs a text.", expected="--text FILE")
    return next_token_data(settings.path, vocabulary=BYTES, length=settings.length, samples=settings.samples or SAMPLES)


TASKS = (Task("text", "the next byte of --text FILE", "the user's", make, needs_path=True),)
