"""A file with its surroundings: config.json beside it, shards, model directories."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, collect
from ssmdiag.checkpoint.companions import read_config, step_in, step_of
from ssmdiag.checkpoint.file_names import DEEPSPEED_WEIGHTS, INDEX, SHARD, WEIGHTS, may_hold_weights
from ssmdiag.checkpoint.formats import known_formats, suffixes
from ssmdiag.checkpoint.location import Location, entries, size_of
from ssmdiag.checkpoint.megatron_ranks import FOLDER, read_ranks
from ssmdiag.checkpoint.opening import open_container
from ssmdiag.checkpoint.ranks import HF_DISTRIBUTED, MERGE, is_marked, join_ranks, may_be_marked, require_no_rank
from ssmdiag.checkpoint.shards import read_index, read_set, require_no_shard
from ssmdiag.errors import CheckpointError, PartialModelError
from ssmdiag.printable import first_of

MOST_LISTED = 50_000
"""Most entries looked at in a directory and the folders in it; a link can lead back to the directory."""


def read_single(path: Location) -> Checkpoint:
    """Return the checkpoint of one file, with the config.json beside it."""
    container = open_container(path)
    require_no_rank(container)
    require_no_shard(container)
    beside = path.name in WEIGHTS or SHARD.search(path.name) or DEEPSPEED_WEIGHTS.search(path.name)
    step = container.train_step
    if step is None:
        step = step_of(path.absolute().parent) if path.name in WEIGHTS else step_in(path.name)
    read = _checkpoint(container, path, path.parent, step)
    return replace(read, directory=path.parent if beside else None)


def _checkpoint(
    container: Container, path: Location, folder: Location, step: int | None, size: int | None = None
) -> Checkpoint:
    """Return the checkpoint of one container, with the config.json of its folder."""
    config, notes, problems = read_config(folder)
    return Checkpoint(
        path=path,
        format=container.format,
        tensors=collect({container: container.names()}),
        size=size_of(path) if size is None else size,
        config=config,
        hyper_parameters=container.settings,
        train_step=step,
        notes=(*container.notes, *notes),
        problems=tuple(problems),
        directory=folder,
    )


def read_directory(path: Location) -> Checkpoint:
    """Return the checkpoint that a directory holds, whole or in shards."""
    present = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        index = f"{name}{INDEX}"
        if name in present or index in present:
            read = read_single(path / name) if name in present else read_index(path / index)
            return replace(read, path=path, directory=path, notes=(*read.notes, *_left_alone(present, name)))
    indexes = sorted(name for name in present if name.endswith(INDEX))
    if len(indexes) == 1:
        return read_index(path / indexes[0])
    weights = (name for name in present if may_hold_weights(name) and not name.startswith("."))
    candidates = sorted(name for name in weights if not (path / name).is_dir())
    if candidates and all(map(HF_DISTRIBUTED.fullmatch, candidates)) and (joined := join_ranks(path, candidates)):
        size = sum(size_of(path / name) for name in candidates)
        return _checkpoint(joined, path, path, step_of(path.absolute()), size)
    if candidates and all(SHARD.search(name) for name in candidates):
        return read_set(path, candidates)
    owners = [format for format in known_formats() if _any_matches(format.owns_folder, present)]
    for format in owners:
        if format.open_folder:
            container = format.open_folder(path)
            size = _size_of(path, container)
            step = step_of(path.absolute()) if container.train_step is None else container.train_step
            return _checkpoint(container, path, path, step, size)
    if not owners:
        if (inner := inner_checkpoint(path)) and not candidates:
            read = read_directory(inner)
            step = step_of(path.absolute()) if read.train_step is None else read.train_step
            return replace(read, path=path, train_step=step, notes=(*read.notes, f"{inner.name}/ in it was read"))
        ranks = sorted(name for name in present if FOLDER.match(name) and (path / name).is_dir())
        if ranks and not candidates:
            container = read_ranks(path, ranks)
            size = sum(size_of(file) for rank in ranks for file in entries(path / rank) if file.is_file())
            step = step_of(path.absolute()) if container.train_step is None else container.train_step
            return _checkpoint(container, path, path, step, size)
        if len(candidates) == 1:
            return replace(read_single(path / candidates[0]), path=path, directory=path)
        if marked := next(filter(may_be_marked, candidates), None):
            require_no_rank(open_container(path / marked))
    raise _decline(path, present, candidates)


def inner_checkpoint(path: Location) -> Location | None:
    """Return the one folder inside a checkpoint's folder that holds the weights, as accelerate and NeMo lay it out."""
    formats = [format for format in known_formats() if format.inner_folder]
    found = [
        folder
        for folder, names in _folders_in(path)
        if any(re.fullmatch(f.inner_folder, folder.name) and _any_matches(f.owns_folder, names) for f in formats)
    ]
    return found[0] if len(found) == 1 else None


def _size_of(path: Location, container: Container) -> int:
    """Return the bytes that a container tells of, or those of all files in its folder and in the folders in that."""
    if isinstance(told := getattr(container, "size", None), int):
        return told
    if not isinstance(path, Path):
        return sum(size_of(file) for file in entries(path, most=MOST_LISTED) if file.is_file())
    files = itertools.islice((Path(place, name) for place, _, names in os.walk(path) for name in names), MOST_LISTED)
    return sum(file.stat().st_size for file in files if file.is_file())


def holds_checkpoint(names: Collection[str]) -> bool:
    """Whether a folder with these names holds a file of weights, or is what a format of whole folders writes."""
    if any(Path(name).suffix in suffixes() for name in names):
        return True
    return any(format.open_folder and _any_matches(format.owns_folder, names) for format in known_formats())


def _any_matches(pattern: str, present: Collection[str]) -> bool:
    """Whether a format's regular expression matches a name in a folder; an empty one matches nothing."""
    return bool(pattern) and any(re.fullmatch(pattern, name) for name in present)


def _left_alone(present: Collection[str], read: str) -> list[str]:
    """Return a remark on other weights of the model in the directory: a consolidated copy, the shards of one file."""
    others = [name for name in WEIGHTS if name != read and (name in present or f"{name}{INDEX}" in present)]
    if read in present and f"{read}{INDEX}" in present:
        others.insert(0, f"{read}{INDEX}")
    return [f"{read} was read, but not {', '.join(others)} beside it"] if others else []


def _decline(path: Location, present: set[str], candidates: list[str]) -> CheckpointError:
    """Return the error for a directory that is not one checkpoint, with what to do instead."""
    refusals = (refusal for format in known_formats() for refusal in format.refusals)
    if refusal := next((each for each in refusals if _any_matches(each.folder, present)), None):
        return CheckpointError(f"{path} is {refusal.what}.", advice=refusal.advice)
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
    if steps := _steps_in(path):
        some = first_of([step.name for step in steps], 6)
        many = f"{len(steps):,} checkpoints, each" if len(steps) > 1 else "1 checkpoint,"
        return CheckpointError(
            f"{path} holds {many} in a folder of its own: {some}",
            expected="one of them",
            advice=f"ssmdiag inspect {steps[-1]}" + f", or ssmdiag compare {path}" * (len(steps) > 1),
        )
    ends = (*suffixes(), INDEX)
    inside = [
        folder
        for folder, names in _folders_in(path)
        if any(name.endswith(ends) for name in names) or holds_checkpoint(names)
    ]
    below = [*inside, *(folder for folder, _ in _folders_in(path / "snapshots"))]  # the Hugging Face cache
    missing = f"name the file with the weights: ls {shlex.quote(str(path))} lists what is there."
    listing = ", ".join(sorted(present)[:6]) or "nothing"
    return CheckpointError(
        f"{path} is a directory without a checkpoint; it holds {listing}.",
        expected=f"one of {', '.join(WEIGHTS)}, an index.json with shards, or one {' '.join(suffixes())} file",
        advice=f"ssmdiag inspect {' '.join(map(str, below[:3]))}" if below else missing,
    )


def _steps_in(path: Location) -> list[Location]:
    """Return the folders in a run that are checkpoints of a format of whole folders, by the numbers in their names."""
    opened = [format for format in known_formats() if format.open_folder]
    found = [
        folder
        for folder, names in _folders_in(path)
        if re.search(r"\d", folder.name) and any(_any_matches(format.owns_folder, names) for format in opened)
    ]
    return sorted(found, key=lambda folder: [int(number) for number in re.findall(r"\d{1,15}", folder.name)])


def runs_in(path: Location) -> list[Location]:
    """Return the folders in a directory that each hold the checkpoints of one run, such as an arm of `ssmdiag retrain`.

    A model directory may hold several files of one step; a run has several steps, or a state to resume from beside it.
    """
    least = 1 if any(path.glob("state-*.state")) else 2
    steps = {
        folder: {step_in(name) for name in names if may_hold_weights(name)} - {None}
        for folder, names in _folders_in(path)
        if not any(name in WEIGHTS or name.endswith(INDEX) for name in names)
    }
    return [folder for folder, found in steps.items() if len(found) >= least]


def _folders_in(path: Location) -> Iterator[tuple[Location, list[str]]]:
    """Yield the folders in a directory that can be listed, each with the names in it, up to a limit."""
    left = MOST_LISTED
    try:
        inside = entries(path, most=left)
    except OSError:
        return
    for entry in inside:
        try:
            names = [file.name for file in entries(entry, most=left)]
        except OSError:
            continue
        yield entry, names
        left -= 1 + len(names)
        if left <= 0:
            return


def several_runs(path: Location, runs: list[Location]) -> CheckpointError:
    """Return the error for a directory with one run in each of its folders."""
    some = ", ".join([*(run.name for run in runs[:6]), *["…"][: len(runs) - 6]])
    many = "a run in a folder of its own" if len(runs) == 1 else f"{len(runs)} runs, each in a folder of its own"
    return CheckpointError(
        f"{path} holds {many}: {some}", expected="one of them", advice=f"ssmdiag compare {runs[0]}, or a file in it."
    )
