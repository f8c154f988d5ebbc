"""A text as sequences of tokens, each to be predicted from those before it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag.checkpoint.budget import open_regular
from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.sources import ONLY_LOCAL, describe_error, import_transformers
from ssmdiag.retrain.tasks import TaskData

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files of which a directory with a tokenizer has one."""
LENGTH = 256
HELD_OUT = 0.1
"""Share of the text, its end, that is for validation."""
BYTES_PER_TOKEN = 12
"""More bytes than a token of running text has: decides how much of a long file to read."""


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
        with open_regular(text) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(min(size, wanted * (BYTES_PER_TOKEN if tokenizer else 1)))
    except OSError as error:
        raise ConfigurationError(
            f"--text {text}: cannot be read ({error.strerror or error}).", expected="a file; a pipe is not waited for"
        ) from error
    tokens = _tokens(content, tokenizer)[:wanted]
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


def directory_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a directory of transformers or beside a checkpoint, None without one; runs no code."""
    path = path.parent if path.is_file() else path
    if not any((path / name).is_file() for name in TOKENIZERS):
        return None
    transformers = import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(path, **ONLY_LOCAL)
    except Exception as error:  # whatever its many readers raise
        raise ConfigurationError(
            f"{path}: its tokenizer cannot be read ({describe_error(error)}).",
            advice=f"without {', '.join(TOKENIZERS)} in the directory the text is read as bytes.",
        ) from error


def _tokens(content: bytes, tokenizer: Any) -> Tensor:
    if tokenizer is None:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).long() if content else torch.zeros(0).long()
    # A window may cut a character in two at the end of what was read.
    return torch.tensor(tokenizer(content.decode("utf-8", "ignore"), verbose=False)["input_ids"], dtype=torch.long)
