"""A file with its surroundings: config.json beside it, shards, model directories."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.budget import (
    MOST_CONFIG,
    MOST_INDEX,
    MOST_TRAINER_STATE,
    parse_json,
    read_text,
    shortened,
    train_step,
)
from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, collect
from ssmdiag.checkpoint.reading import open_container
from ssmdiag.errors import CheckpointError, UnsafePickleError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pt", "consolidated.safetensors", "consolidated.00.pth")
"""File names that hold a directory's weights, in the order they are looked for; `.index.json` after each."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".gguf")
TRAINER_FILES = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scheduler.bin", "rng_state.pth")
"""What trainers leave beside the weights."""

DEEPSPEED_WEIGHTS = re.compile(r"mp_rank_\d+_model_states\.pt$")
"""Weights that DeepSpeed saves, its optimiser's state in files beside them."""

MOST_SHARDS, MOST_NAMED, LONGEST_FILE = 10_000, 20, 1000
"""Shards of one model, missing ones that are named, and characters of a shard's name."""
MOST_LISTED = 50_000
"""Entries of a directory, with those of the folders in it, that are looked at; a link can lead back to it."""

SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")


def read_single(path: Path) -> Checkpoint:
    """Return the checkpoint of one file, with the config.json beside it."""
    container = open_container(path)
    config, notes = _read_config(path.parent)
    if shard := SHARD.search(path.name):
        notes.append(f"this is shard {int(shard[1])} of {int(shard[2])}; give the directory to read all of them")
    step = container.train_step
    if step is None:
        step = _step_of(path.absolute().parent) if path.name in WEIGHTS else _step_in(path.name)
    return Checkpoint(
        path=path,
        format=container.format,
        tensors=collect({container: container.names()}),
        size=path.stat().st_size,
        config=config,
        hyper_parameters=container.settings,
        train_step=step,
        notes=(*container.notes, *notes),
        directory=path.parent if shard or path.name in WEIGHTS or DEEPSPEED_WEIGHTS.search(path.name) else None,
    )


def read_directory(path: Path) -> Checkpoint:
    """Return the checkpoint that a directory holds, whole or in shards."""
    present = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        if name in present:
            return replace(read_single(path / name), path=path, directory=path)
        if f"{name}.index.json" in present:
            return read_index(path / f"{name}.index.json")
    indexes = sorted(name for name in present if name.endswith(".index.json"))
    if len(indexes) == 1:
        return read_index(path / indexes[0])
    candidates = sorted(name for name in present if name.endswith(SUFFIXES) and not name.startswith("."))
    candidates = [name for name in candidates if name not in TRAINER_FILES]
    if len(candidates) == 1:
        return replace(read_single(path / candidates[0]), path=path, directory=path)
    if candidates and all(SHARD.search(name) for name in candidates):
        return _read_shards(path, dict.fromkeys(_all_of(candidates)), "the names of the shards")
    raise _decline(path, present, candidates)


def read_index(path: Path) -> Checkpoint:
    """Return the checkpoint of a shard index, {"weight_map": {tensor: file}}."""
    promised: dict[str, set[str]] = {}
    try:
        for name, file in parse_json(read_text(path, MOST_INDEX))["weight_map"].items():
            if len(file) > LONGEST_FILE:
                raise ValueError(f"the name of a file has {len(file):,} characters")
            promised.setdefault(str(Path(file)), set()).add(name)
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or shortened(f"{type(error).__name__}: {error}", 200)
        raise CheckpointError(
            f"{path.name} is not a shard index ({reason}).",
            expected='{"weight_map": {tensor: file, …}}',
            advice="download it again.",
        ) from error
    return _read_shards(path.parent, promised, path.name)


def _read_shards(directory: Path, promised: Mapping[str, set[str] | None], origin: str) -> Checkpoint:
    """Open every shard; what `origin` promises and a shard lacks becomes a problem, not a crash."""
    opened: dict[Container, list[str]] = {}
    config, notes = _read_config(directory)
    problems: list[str] = []
    missing: list[str] = []
    if len(promised) > MOST_SHARDS:
        raise CheckpointError(
            f"{directory}: {origin} names {len(promised):,} files.", expected=f"at most {MOST_SHARDS:,} shards"
        )
    home = {name: file for file, names in promised.items() for name in names or ()}
    size = 0
    for file, names in sorted(promised.items()):
        lost = f" ({len(names):,} tensors)" if names is not None else ""
        if Path(file).is_absolute() or ".." in Path(file).parts:
            problems.append(f"{origin} points outside its directory: {file}; not opened")
            continue
        shard = directory / file
        if not shard.exists():
            missing.append(f"shard {file} is missing{lost}")
            continue
        try:
            container = open_container(shard)
        except UnsafePickleError:
            raise
        except (CheckpointError, OSError) as error:
            problems.append(f"shard {file} cannot be read{lost}: {getattr(error, 'seen', error)}")
            continue
        held = container.names()
        absent = sorted((names or set()) - set(held))
        if absent:
            problems.append(
                f"shard {file} lacks {len(absent):,} tensor{'s' * (len(absent) > 1)} the index promises: "
                + ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
            )  # fmt: skip
        # A tensor that the index gives to another shard is read from that one.
        opened[container] = [name for name in held if home.get(name, file) == file]
        notes.extend(container.notes)
        size += shard.stat().st_size
    problems += missing[:MOST_NAMED]
    if len(missing) > MOST_NAMED:
        problems.append(f"{len(missing) - MOST_NAMED:,} more shards are missing")
    if not opened:
        raise CheckpointError(
            f"{directory}: none of its {len(promised)} shards can be read.",
            details=problems[:8],
            expected=f"the files that {origin} names",
            advice="download them again.",
        )
    return Checkpoint(
        path=directory,
        format=f"{next(iter(opened)).format}, {len(opened)} shards",
        tensors=collect(opened),
        size=size,
        config=config,
        hyper_parameters={key: value for container in opened for key, value in container.settings.items()},
        train_step=_step_of(directory.absolute()),
        notes=tuple(dict.fromkeys(notes)),
        problems=tuple(problems),
        directory=directory,
    )


def _all_of(shards: list[str]) -> list[str]:
    """Return the names of all shards of a set of which some are there."""
    sets = {(name[: found.start()], found[2], name[found.end() :]) for name in shards if (found := SHARD.search(name))}
    names = set(shards)
    for head, count, tail in sorted(sets):
        numbers = range(1, min(int(count), MOST_SHARDS - len(names)) + 1)
        names |= {f"{head}-{number:05d}-of-{count}.{tail}" for number in numbers}
    return sorted(names)


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
        folder: {_step_in(name) for name in names if name.endswith(SUFFIXES) and name not in TRAINER_FILES} - {None}
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


def _read_config(directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Return config.json, and remarks if it is there and cannot be used."""
    path = directory / "config.json"
    try:
        if not path.exists() and not path.is_symlink():
            return {}, []
        content = parse_json(read_text(path, MOST_CONFIG), object_hook=_special_float)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return {}, [f"config.json cannot be read ({reason}); settings are taken to be the usual ones"]
    if not isinstance(content, dict):
        return {}, ["config.json holds no settings; they are taken to be the usual ones"]
    return content, []


def _special_float(content: dict[str, Any]) -> Any:
    """Return the float behind {"__float__": "Infinity"}, as transformers 5 writes it."""
    if set(content) == {"__float__"} and content["__float__"] in ("Infinity", "-Infinity", "NaN"):
        return float(content["__float__"])
    return content


def _step_of(directory: Path) -> int | None:
    """Return the optimiser step of a directory, by its name or by what transformers' Trainer wrote into it."""
    step = _step_in(directory.name)
    path = directory / "trainer_state.json"
    if step is None and path.is_file():
        try:
            step = parse_json(read_text(path, MOST_TRAINER_STATE))["global_step"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return train_step(step) if type(step) is int else None


def _step_in(name: str) -> int | None:
    """Return the optimiser step from a name such as `step-01000` or `checkpoint-500`; `step-10k` is left alone."""
    word = r"(?:^|[^a-z])(?:global_?step|step|checkpoint|ckpt|iter)"
    found = re.search(rf"{word}[-_=]?(\d{{1,15}})(?![\dkm])", name, re.IGNORECASE)
    return int(found[1]) if found else None
