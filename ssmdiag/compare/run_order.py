"""In which order the checkpoints of a run were saved: by the steps they hold, by their names, or as given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from glob import glob
from pathlib import Path

from ssmdiag.checkpoint import Checkpoint, read_checkpoint
from ssmdiag.checkpoint.directories import holds_checkpoint, inner_checkpoint, runs_in, several_runs
from ssmdiag.checkpoint.file_names import INDEX, SHARD, WEIGHTS
from ssmdiag.checkpoint.formats import suffixes
from ssmdiag.checkpoint.location import Location, entries, locate
from ssmdiag.errors import CheckpointError, PartialModelError, SsmdiagError

COUNTS_STEPS = re.compile(r"(?:steps?|iter|iterations?|iters|ckpt|checkpoint|updates?)[\W_]*$", re.IGNORECASE)
COUNTS_EPOCHS = re.compile(r"(?<![A-Za-z])(?:epochs?|ep)[\W_]*$", re.IGNORECASE)
THOUSANDS = re.compile(r"(?<![0-9])([0-9]{1,9})([kKM])(?![A-Za-z])")
_NUMBERS = re.compile(r"([0-9]+)")
_ZEROS = {"k": "000", "K": "000", "M": "000000"}
LONGEST_STEP = 15
"""Digits of a step; a longer number is a name."""


class OrderSource(Enum):
    """Where the order, and the x axis of every trend, comes from. Values are printed in reports."""

    STORED = "the train step of each file"
    NAMES = "the numbers in the names"
    GIVEN = "the order given"


@dataclass(frozen=True)
class RunOrder:
    """When each of several checkpoints was saved."""

    source: OrderSource
    unit: str
    """What the steps count: `step`, `epoch` or `checkpoint`."""
    steps: tuple[int, ...]
    """Of each path as given."""
    certain: bool
    """Whether files or names say that these are steps or epochs, and not, say, seeds."""

    @property
    def order(self) -> list[int]:
        """Return the positions of the paths in the order of the run; equal steps keep the order given."""
        return sorted(range(len(self.steps)), key=lambda i: (self.steps[i], i))


def expand_run(paths: Sequence[str | Location]) -> list[Location]:
    """Return the checkpoints that paths name: unexpanded patterns, and one directory of a run.

    A directory stands for the numbered checkpoint files and model directories in it, if there are two or more.

    Raises CheckpointError for a directory of whole runs: checkpoints of different runs have no order.
    """
    expanded: list[Location] = []
    for path in map(locate, paths):
        pattern = isinstance(path, Path) and not path.exists() and any(character in str(path) for character in "*?[")
        found = sorted(map(Path, glob(str(path)))) if pattern else []
        expanded += found or [path]
    if len(expanded) == 1 and expanded[0].is_dir():
        inside = numbered_in(expanded[0])
        if not any(entry.is_file() for entry in inside) and (runs := runs_in(expanded[0])):
            raise several_runs(expanded[0], runs)
        return inside if len(inside) > 1 else expanded
    return expanded


def last_checkpoints(paths: Sequence[Location]) -> tuple[list[Location], tuple[str, ...]]:
    """Return several paths with the last checkpoint in place of each directory of a run, and a note on each of those.

    A directory that holds a model's weights under their usual name is that model, whatever else is in it.

    Raises CheckpointError where nothing says which checkpoint of a run is its last.
    """
    if len(paths) < 2:
        return list(paths), ()
    ends, notes = [], []
    for path in paths:
        holds = ((path / f"{name}{end}").exists() for name in WEIGHTS for end in ("", INDEX))
        inside = numbered_in(path) if path.is_dir() and not any(holds) else []
        if len(inside) < 2:
            ends.append(path)
            continue
        run = order_checkpoints(inside, [stored_step(entry) for entry in inside])
        last = inside[run.order[-1]]
        if run.source is OrderSource.GIVEN:
            raise CheckpointError(
                f"nothing says which of the {len(inside)} checkpoints in {path} is the last.",
                advice=f"name one of each run, such as {last}.",
            )
        ends.append(last)
        when = f"{run.unit} {max(run.steps):,}, by {run.source.value}"
        notes.append(f"{last.name} is the last of {len(inside)} checkpoints in {path} ({when})")
    return ends, tuple(notes)


def read_newest(path: Location) -> tuple[Checkpoint, str | None]:
    """Return the checkpoint at a path; of the folder of a run its newest, with a sentence that says so.

    Raises CheckpointError where the path is neither, or nothing says which checkpoint of a run is its last.
    """
    try:
        return read_checkpoint(path), None
    except PartialModelError:
        raise
    except CheckpointError:
        inside = numbered_in(path) if path.is_dir() else []
        run = order_checkpoints(inside, [stored_step(entry) for entry in inside]) if len(inside) > 1 else None
        if run is None or not run.certain:
            raise
        newest = inside[run.order[-1]]
        note = f"newest of {len(inside)}: {newest.name}; `ssmdiag compare {path}` follows the run"
        return read_checkpoint(newest), note


def in_run_order(paths: Sequence[Location]) -> list[Location]:
    """Return paths in the order of the steps that their names say; as they are where no word there speaks of steps."""
    found = numbers_in_names(paths) if len(paths) > 1 else None
    if found is None or not found[2]:
        return list(paths)
    return [path for _, path in sorted(zip(found[1], paths, strict=True), key=lambda pair: pair[0])]


def stored_step(path: Location) -> int | None:
    """Return the train step that a checkpoint gives; None where it gives none or cannot be opened."""
    try:
        return read_checkpoint(path).train_step
    except SsmdiagError:  # reading it reports the reason
        return None


def numbered_in(directory: Location) -> list[Location]:
    """Return the checkpoint files and model directories in a directory that have a number in their name, by name."""
    return [entry for entry in _entries(directory) if _is_numbered_checkpoint(entry)]


def _entries(directory: Location) -> list[Location]:
    """Return a directory's entries, in order; none where it may not be listed: opening it reports the reason."""
    try:
        return entries(directory)
    except OSError:
        return []


def _is_numbered_checkpoint(entry: Location) -> bool:
    if not any(character.isdigit() for character in entry.stem) or SHARD.search(entry.name):
        return False
    if entry.is_dir():
        return holds_checkpoint([file.name for file in _entries(entry)]) or inner_checkpoint(entry) is not None
    return entry.suffix in suffixes()


def order_checkpoints(paths: Sequence[str | Location], stored: Sequence[int | None]) -> RunOrder:
    """Return the order of a run's checkpoints; `stored` are the train steps in the files, None where one has none.

    Stored steps count where every file has one and they differ; else the one number that varies from name to
    name; else the order given.
    """
    known = [step for step in stored if step is not None]
    if len(known) == len(paths) and (len(set(known)) > 1 or len(known) == 1):
        return RunOrder(OrderSource.STORED, "step", tuple(known), True)
    if found := numbers_in_names(paths):
        return RunOrder(OrderSource.NAMES, *found)
    return RunOrder(OrderSource.GIVEN, "checkpoint", tuple(range(1, len(paths) + 1)), False)


def numbers_in_names(paths: Sequence[str | Location]) -> tuple[str, tuple[int, ...], bool] | None:
    """Return what the number that varies between names counts, its values, and whether a word beside it says so; None
    where no one number varies.

    Where all files are called alike, the directories they lie in tell them apart.

    >>> numbers_in_names(["run/step-100.pt", "run/step-20.pt"])
    ('step', (100, 20), True)
    >>> numbers_in_names(["checkpoint-5/model.pt", "checkpoint-10/model.pt"])
    ('step', (5, 10), True)
    >>> numbers_in_names(["epoch=1-step=90-loss=0.25.ckpt", "epoch=2-step=180-loss=0.21.ckpt"])
    ('step', (90, 180), True)
    >>> numbers_in_names(["step-500.pt", "step-1k.pt", "step-2M.pt"])
    ('step', (500, 1000, 2000000), True)
    >>> numbers_in_names(["seed-1.pt", "seed-2.pt"])
    ('step', (1, 2), False)
    >>> numbers_in_names(["a.pt", "b.pt"])
    """
    levels = zip(*(reversed(locate(path).absolute().parts) for path in paths), strict=False)
    depth, names = next(((depth, level) for depth, level in enumerate(levels) if len(set(level)) > 1), (0, ()))
    if not names:
        return None
    split = [_NUMBERS.split(THOUSANDS.sub(lambda m: m[1] + _ZEROS[m[2]], name)) for name in names]
    if len({tuple(parts[::2]) for parts in split}) > 1:
        return None
    words = split[0][::2]
    varying = [
        i for i, column in enumerate(zip(*(parts[1::2] for parts in split), strict=True)) if len(set(column)) > 1
    ]
    named = [i for i in varying if COUNTS_STEPS.search(words[i])] or [
        i for i in varying if COUNTS_EPOCHS.search(words[i])
    ]
    # A directory's number is a step where it is all of its name; run1 and run2 are two runs.
    chosen = named or (varying if depth == 0 or words == ["", ""] else [])
    if len(chosen) != 1:
        return None
    (at,) = chosen
    if any(len(parts[2 * at + 1].lstrip("0")) > LONGEST_STEP for parts in split):
        return None
    unit = "epoch" if COUNTS_EPOCHS.search(words[at]) else "step"
    return unit, tuple(int(parts[2 * at + 1]) for parts in split), bool(named)
