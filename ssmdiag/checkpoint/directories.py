"""A file with its surroundings: config.json beside it, shards, model directories."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from ssmdiag.checkpoint.checkpoint import Checkpoint, collect
from ssmdiag.checkpoint.companions import read_config, step_in, step_of
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.checkpoint.ranks import MERGE, is_marked, may_be_marked, require_no_rank
from ssmdiag.checkpoint.shards import SHARD, read_index, read_set, require_no_shard
from ssmdiag.errors import CheckpointError, PartialModelError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pt", "consolidated.safetensors", "consolidated.00.pth")
"""File names that hold a directory's weights, in the order they are looked for; `.index.json` after each."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".gguf")
TRAINER_FILES = (
    "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "rng_state.pth",
    "sampler.bin",
)  # fmt: skip
"""What trainers leave beside the weights."""

DEEPSPEED_WEIGHTS = re.compile(r"mp_rank_\d+_model_states\.pt$")
"""Weights that DeepSpeed saves, its optimiser's state in files beside them."""

DISTRIBUTED = re.compile(r"\.metadata|__\d+_\d+\.distcp|zero_to_fp32\.py|bf16_zero_pp_rank_.*|zero_pp_rank_.*")
"""What only torch.distributed and DeepSpeed leave: a file beside it with the suffix of weights holds something else."""
MOST_LISTED = 50_000
"""Entries of a directory, with those of the folders in it, that are looked at; a link can lead back to it."""


def read_single(path: Path) -> Checkpoint:
    """Return the checkpoint of one file, with the config.json beside it."""
    container = open_container(path)
    require_no_rank(container)
    require_no_shard(container)
    config, notes, problems = read_config(path.parent)
    beside = path.name in WEIGHTS or SHARD.search(path.name) or DEEPSPEED_WEIGHTS.search(path.name)
    step = container.train_step
    if step is None:
        step = step_of(path.absolute().parent) if path.name in WEIGHTS else step_in(path.name)
    return Checkpoint(
        path=path,
        format=container.format,
        tensors=collect({container: container.names()}),
        size=path.stat().st_size,
        config=config,
        hyper_parameters=container.settings,
        train_step=step,
        notes=(*container.notes, *notes),
        problems=tuple(problems),
        directory=path.parent if beside else None,
    )


def read_directory(path: Path) -> Checkpoint:
    """Return the checkpoint that a directory holds, whole or in shards."""
    present = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        index = f"{name}.index.json"
        if name in present or index in present:
            read = read_single(path / name) if name in present else read_index(path / index)
            return replace(read, path=path, directory=path, notes=(*read.notes, *_left_alone(present, name)))
    indexes = sorted(name for name in present if name.endswith(".index.json"))
    if len(indexes) == 1:
        return read_index(path / indexes[0])
    candidates = sorted(name for name in present if name.endswith(SUFFIXES) and not name.startswith("."))
    candidates = [name for name in candidates if name not in TRAINER_FILES and not (path / name).is_dir()]
    if candidates and all(SHARD.search(name) for name in candidates):
        return read_set(path, candidates)
    if not any(DISTRIBUTED.fullmatch(name) for name in present):
        if len(candidates) == 1:
            return replace(read_single(path / candidates[0]), path=path, directory=path)
        if marked := next(filter(may_be_marked, candidates), None):
            require_no_rank(open_container(path / marked))
    raise _decline(path, present, candidates)


def _left_alone(present: Collection[str], read: str) -> list[str]:
    """Say which other weights of the model stand in the directory: a consolidated copy, the shards of one file."""
    others = [name for name in WEIGHTS if name != read and (name in present or f"{name}.index.json" in present)]
    if read in present and f"{read}.index.json" in present:
        others.insert(0, f"{read}.index.json")
    return [f"{read} was read, and not {', '.join(others)} beside it"] if others else []


def _decline(path: Path, present: set[str], candidates: list[str]) -> CheckpointError:
    """Return the error for a directory that is not one checkpoint, with what to do instead."""
    for sign, kind, advice in _DIRECTORIES:
        if any(re.fullmatch(sign, name) for name in present):
            return CheckpointError(f"{path} is {kind}, which holds shards of tensors.", advice=advice)
    if candidates:
        some = ", ".join([*candidates[:6], *["…"][: len(candidates) - 6]])
        return CheckpointError(
            f"{path} holds {len(candidates)} checkpoints: {some}",
            advice=f"name the files: ssmdiag inspect {path}/*{Path(candidates[0]).suffix}",
        )
    if len(ranks := [folder.name for folder, _ in _folders_in(path) if is_marked(folder.name)]) > 1:
        return PartialModelError(
            f"{path} holds the parts of {len(ranks):,} ranks: {', '.join(ranks[:3])}{' …' * (len(ranks) > 3)}",
            expected="the parts of all ranks merged",
            advice=MERGE["megatron"],
        )
    if runs := runs_in(path):
        return several_runs(path, runs)
    ends = (*SUFFIXES, ".index.json")
    inside = [folder for folder, names in _folders_in(path) if any(name.endswith(ends) for name in names)]
    below = [*inside, *(folder for folder, _ in _folders_in(path / "snapshots"))]  # the Hugging Face cache
    listing = ", ".join(sorted(present)[:6]) or "nothing"
    return CheckpointError(
        f"{path} is a directory without a checkpoint; it holds {listing}.",
        expected=f"one of {', '.join(WEIGHTS)}, an index.json with shards, or one {' '.join(SUFFIXES)} file",
        advice=f"ssmdiag inspect {' '.join(map(str, below[:3]))}" if below else "name the file with the weights.",
    )


def runs_in(path: Path) -> list[Path]:
    """Return the folders in a directory that each hold the checkpoints of a run, as those of `ssmdiag retrain`'s arms.

    A model directory may hold several files of one step; a run has several steps, or a state to resume from beside it.
    """
    least = 1 if any(path.glob("state-*.state")) else 2
    steps = {
        folder: {step_in(name) for name in names if name.endswith(SUFFIXES) and name not in TRAINER_FILES} - {None}
        for folder, names in _folders_in(path)
        if not any(name in WEIGHTS or name.endswith(".index.json") for name in names)
    }
    return [folder for folder, found in steps.items() if len(found) >= least]


def _folders_in(path: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders in a directory that can be listed, with the names in them, while there are not too many."""
    left = MOST_LISTED
    try:
        entries = sorted(itertools.islice(path.iterdir(), left))
    except OSError:
        return
    for entry in entries:
        try:
            names = [file.name for file in itertools.islice(entry.iterdir(), left)]
        except OSError:
            continue
        yield entry, names
        left -= 1 + len(names)
        if left <= 0:
            return


def several_runs(path: Path, runs: list[Path]) -> CheckpointError:
    """Return the error for a directory whose folders hold a run each."""
    some = ", ".join([*(run.name for run in runs[:6]), *["…"][: len(runs) - 6]])
    many = "a run in a folder of its own" if len(runs) == 1 else f"{len(runs)} runs, each in a folder of its own"
    return CheckpointError(
        f"{path} holds {many}: {some}", expected="one of them", advice=f"ssmdiag compare {runs[0]}, or a file in it."
    )


_DIRECTORIES = (
    (
        r"zero_to_fp32\.py|global_step\d+|.*mp_rank_\d+_model_states\.pt|latest",
        "a DeepSpeed checkpoint",
        "run its zero_to_fp32.py and inspect the result.",
    ),
    (
        r"\.metadata|__\d+_\d+\.distcp",
        "a torch.distributed checkpoint",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt",
    ),
    (
        r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|checkpoint",
        "an orbax or TensorFlow checkpoint",
        "restore it where it was written and numpy.savez('model.npz', **flat_params).",
    ),
)
