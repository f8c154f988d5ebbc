"""A text as sequences of tokens, each to be predicted from those before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.probing.texts import read_start, tokenize
from ssmdiag.retrain.tasks import TaskData

LENGTH = 256
HELD_OUT = 0.1
"""Share of the text, its end, that is for validation."""


def next_token_data(
    text: Path, *, vocabulary: int, length: int | None = None, samples: int, tokenizer: Any = None
) -> TaskData:
    """Return windows of `length` tokens and the tokens that follow each; bytes where there is no tokenizer.

    Windows follow one another without overlap, from the beginning of the file; the last tenth of them are for
    validation. Raises ConfigurationError for a text that is too short, or has tokens the model does not know.
    """
    length = length or LENGTH
    wanted = int(samples / (1 - HELD_OUT) + 2) * length + 1
    try:
        content = read_start(text, wanted, tokenizer)
    except SsmdiagError as error:
        raise ConfigurationError(f"--text {error.seen}", expected=error.expected) from error
    tokens = tokenize(content, tokenizer)[:wanted]
    units = "tokens" if tokenizer else "bytes"
    windows = (len(tokens) - 1) // length
    if windows < 2:
        raise ConfigurationError(
            f"--text {text}: {len(tokens):,} {units}.",
            expected=f"{2 * length + 1:,} at least: a sequence of {length} to train on and one to validate with",
            advice="give a longer text, or a smaller --length.",
        )
    if int(tokens.max()) >= vocabulary:
        raise ConfigurationError(
            f"--text {text}: {units} up to {int(tokens.max())}, and the model's vocabulary has {vocabulary}.",
            expected="a tokenizer of the model in its directory" if tokenizer is None else "the model's own tokenizer",
        )
    used = tokens[: windows * length + 1]
    x, y = used[:-1].view(windows, length), used[1:].view(windows, length)
    train = windows - max(1, round(HELD_OUT * windows))
    return TaskData(
        x[:train][:samples], y[:train][:samples], x[train:], y[train:],
        "cross-entropy", "every step", outputs=vocabulary, vocabulary=vocabulary,
    )  # fmt: skip
