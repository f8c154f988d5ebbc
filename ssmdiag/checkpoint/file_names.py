"""What the files of a model are called, and those that trainers leave beside them."""

from __future__ import annotations

import re

WEIGHTS = (
    "model.safetensors", "pytorch_model.bin", "model.pt", "consolidated.safetensors", "consolidated.00.pth",
    "flax_model.msgpack",
)  # fmt: skip
"""File names that hold a directory's weights, in the order they are looked for; `.index.json` after each."""

INDEX = ".index.json"
"""How the name of a shard index ends: a table of which tensor is in which file."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
"""The number of a shard in its name, and how many there are."""

TRAINER_FILES = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "rng_state.pth",
    "sampler.bin",
)  # fmt: skip
"""What trainers leave beside the weights, under the suffixes of weights."""

LEFT_BY_TRANSFORMERS = ("trainer_state.json", "training_args.bin")
"""What transformers' Trainer leaves beside the weights, and nobody else."""

DEEPSPEED_WEIGHTS = re.compile(r"mp_rank_\d+_model_states\.pt$")
"""Weights that DeepSpeed saves, its optimiser's state in files beside them."""


def may_hold_weights(name: str) -> bool:
    """Whether a file is called as weights are, and not as what trainers leave beside them.

    >>> [may_hold_weights(name) for name in ("step-100.gguf", "model.npz", "optimizer.pt", "config.json")]
    [True, True, False, False]
    """
    from ssmdiag.checkpoint.formats import suffixes

    return name.endswith(suffixes()) and name not in TRAINER_FILES
