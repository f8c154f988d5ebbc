"""Names of a model's files, and of the files that trainers leave beside them."""

from __future__ import annotations

import re

WEIGHTS = (
    "model.safetensors", "pytorch_model.bin", "model.pt", "consolidated.safetensors", "consolidated.00.pth",
    "flax_model.msgpack",
)  # fmt: skip
"""File names that hold a directory's weights, in the order they are looked for; `.index.json` after each."""

INDEX = ".index.json"
"""Ending of the name of a shard index, a table of which tensor is in which file."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
"""A shard's number and the number of shards, in its name."""

TRAINER_FILES = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "rng_state.pth",
    "sampler.bin",
)  # fmt: skip
"""What trainers leave beside the weights, under the suffixes of weights."""

LEFT_BY_TRANSFORMERS = ("trainer_state.json", "training_args.bin")
"""Files beside the weights that only transformers' Trainer writes."""

DEEPSPEED_WEIGHTS = re.compile(r"mp_rank_\d+_model_states\.pt$")
"""Weights that DeepSpeed saves, its optimiser's state in files beside them."""


def may_hold_weights(name: str) -> bool:
    """Whether a file has a name that weights have, and is not one of the files that trainers leave beside them.

    >>> [may_hold_weights(name) for name in ("step-100.gguf", "model.npz", "optimizer.pt", "config.json")]
    [True, True, False, False]
    """
    from ssmdiag.checkpoint.formats import suffixes

    return name.endswith(suffixes()) and name not in TRAINER_FILES
