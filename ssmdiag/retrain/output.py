"""The folder of a run, checked before anything is trained: can it be written, does it hold a run already?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ssmdiag.errors import ConfigurationError
from ssmdiag.retrain.arms import Arm
from ssmdiag.retrain.distributed import Ranks
from ssmdiag.retrain.resuming import require_asked_for
from ssmdiag.retrain.saving import advice_for


def prepare(
    folder: Path, arms: Sequence[Arm], states: Sequence[Path], *, resume: bool, ranks: Ranks, writes: bool
) -> tuple[str, ...]:
    """Make the folder and return what a reader of the results must know of it.

    `states` are where the states of these arms would lie; `writes` says whether this rank writes. Every rank looks
    before any of them trains. Raises ConfigurationError where the folder cannot be written, without `resume` holds
    a run of these arms, or with it holds runs of other arms alone, or checkpoints of these without a state.
    """
    if writes:
        _require_writable(folder)
    # Only the first rank's view counts: the others may have another disk.
    held, resumable = ranks.gather((_held(folder, arms, states), any(path.exists() for path in states)))[0]
    if held and not resume:
        raise ConfigurationError(
            f"--output {folder} holds a run already: {held}.",
            advice="give --resume to go on with it, or another --output.",
        )
    if held and not resumable:
        raise ConfigurationError(
            f"--resume: {folder} has no state to go on from, but {held}, which training anew would replace.",
            advice="give another --output, or remove what is there.",
        )
    if resume and not resumable and writes:
        require_asked_for(folder, arms)
    return (f"nothing to resume from in {folder}: started anew",) if resume and not resumable else ()


def require_apart(folder: Path, arms: Sequence[Arm], reads: Sequence[Path]) -> None:
    """Raise ConfigurationError where a run would write beside what it reads: over its config.json, at the least."""
    for arm in arms:
        place = folder / arm.label
        for read in reads:
            if place.is_dir() and place.samefile(read if read.is_dir() else read.absolute().parent):
                raise ConfigurationError(
                    f"--output {folder}: {read} lies where {arm.label} would be kept.",
                    advice="give another --output.",
                )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"--output {folder}: cannot be written ({error.strerror or error}).",
            expected="a folder, or the name of one that can be made",
            advice=advice_for(error),
        ) from error


def _held(folder: Path, arms: Sequence[Arm], states: Sequence[Path]) -> str:
    """Return what already exists where these arms would be kept; empty if nothing does."""
    for arm in arms:
        steps = sorted(path.name for path in (folder / arm.label).glob("step-*"))
        if steps:
            some = steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
            return f"{arm.label} has {some}"
    return next((path.name for path in states if path.exists()), "")
