"""Text files as windows of tokens: by the tokenizer beside a model, or as bytes for a model of bytes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag.checkpoint.budget import open_regular
from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.probing.models import ONLY_LOCAL, describe_error, import_transformers

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""Files of which a directory with a tokenizer has one."""
BYTES_PER_TOKEN = 12
"""More bytes than a token of running text has: decides how much of a long file to read."""
MOST_BYTES = 320
"""Largest vocabulary that may be bytes: 256 and some special tokens."""
WINDOWS = 8
"""Windows read of each text, unless told otherwise."""


def read_texts(
    paths: Sequence[Path], *, vocabulary: int | None, length: int, windows: int = WINDOWS, tokenizer: Any = None
) -> Tensor:
    """Return windows of `length` tokens, (window, length) int64: of each text `windows` at most, from its beginning on.

    They follow one another, none of them is padded, and no token is added that is not in the text, such as one for its
    beginning. `vocabulary`: how many tokens the model knows, None where that is not known. Raises SsmdiagError where a
    text cannot be read, is shorter than a window or has tokens the model does not know; where there is neither a
    tokenizer nor a vocabulary of bytes.
    """
    if tokenizer is None and vocabulary is not None and vocabulary > MOST_BYTES:
        raise SsmdiagError(
            f"there is no tokenizer beside the model, and its vocabulary of {vocabulary:,} is not that of bytes.",
            expected=f"one of {', '.join(TOKENIZERS)} in its folder",
            advice="copy the tokenizer's files into the folder.",
        )
    return torch.cat([_windows(path, vocabulary, length, windows, tokenizer) for path in paths])


def _windows(path: Path, vocabulary: int | None, length: int, windows: int, tokenizer: Any) -> Tensor:
    tokens = tokenize(read_start(path, length * windows, tokenizer), tokenizer, special=False)[: length * windows]
    units = "tokens" if tokenizer else "bytes"
    if len(tokens) < length:
        raise SsmdiagError(
            f"{path}: {len(tokens):,} {units}.",
            expected=f"{length:,} at least, the length of a text",
            advice="give a longer text, or a smaller --length.",
        )
    if vocabulary is not None and int(tokens.max()) >= vocabulary:
        raise SsmdiagError(
            f"{path}: {units} up to {int(tokens.max()):,}, and the model's vocabulary has {vocabulary:,}.",
            expected="the model's own tokenizer" if tokenizer else "a tokenizer of the model in its folder",
        )
    return tokens[: len(tokens) // length * length].view(-1, length)


def read_start(path: Path, tokens: int, tokenizer: Any) -> bytes:
    """Return as much of a file as has so many tokens, or all of it. Raises SsmdiagError where it cannot be read."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(min(size, tokens * (BYTES_PER_TOKEN if tokenizer else 1)))
    except OSError as error:
        raise SsmdiagError(
            f"{path}: cannot be read ({error.strerror or error}).",
            expected="a regular file",
            advice=f"list what is there: ls {shlex.quote(str(path.parent))}",
        ) from error


def tokenize(content: bytes, tokenizer: Any, *, special: bool = True) -> Tensor:
    """Return the tokens of a text, or its bytes without a tokenizer; `special`: with those for beginning and end."""
    if tokenizer is None:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8).long() if content else torch.zeros(0).long()
    # What was read may end within a character.
    text = content.decode("utf-8", "ignore")
    return torch.tensor(tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"], dtype=torch.long)


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
