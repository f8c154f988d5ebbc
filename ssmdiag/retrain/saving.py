"""What a training run leaves on disk: checkpoints others can read, and a state to resume from, which is none of them.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, named as the published code names its tensors
    FOLDER/ARM/config.json               sequence length and map, for whoever reads the checkpoints
    FOLDER/state-….state                 weights, optimiser, losses and step of a group of arms: see `resuming`

Every file is written under another name and renamed: a full disk or a kill leaves the old one intact.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ssmdiag import temporaries
from ssmdiag.errors import SsmdiagError

if TYPE_CHECKING:
    from ssmdiag.retrain.arms import Arm, Budget
    from ssmdiag.retrain.model import Ensemble

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""Numbers of the errors of a disk that is full; torch and safetensors give none."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def save_arm(folder: Path, ensemble: Ensemble, position: int, step: int, budget: Budget, length: int) -> Path:
    """Write one arm's checkpoint and return its path."""
    from safetensors.torch import save

    arm = ensemble.arms[position]
    path = checkpoint_path(folder, arm, step, budget)
    settings = {"seq_len": length, "rate_map": arm.param, "arm": asdict(arm)}
    write(path.with_name("config.json"), json.dumps(settings, indent=2).encode() + b"\n")
    metadata = {"step": str(step), "rate_map": arm.param}
    write(path, in_order(save(ensemble.state_dict(position), metadata)))
    return path


def in_order(content: bytes) -> bytes:
    """Return a safetensors file's head with its metadata in order: safetensors writes them in another one every time.

    `content` is the head, or begins with it; what follows stays, and the head keeps its size.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :] if len(text) <= size else content


def checkpoint_path(folder: Path, arm: Arm, step: int, budget: Budget) -> Path:
    """Return where an arm's checkpoint of a step is kept."""
    return folder / arm.label / f"step-{step:0{len(str(budget.steps))}d}.safetensors"


def checkpoints_of(folder: Path, arm: Arm, budget: Budget, last: int) -> tuple[Path, ...]:
    """Return an arm's checkpoints of a run of this budget, up to a step; what other runs left is not among them."""
    paths = [checkpoint_path(folder, arm, step, budget) for step in range(last + 1) if budget.keeps(step)]
    return tuple(path for path in paths if path.exists())


def write(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        for part in parts:
            file.write(part)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; once that is on disk it takes the place of `path`. Raises SsmdiagError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporaries.replacing(path, durable=True) as temporary:
            yield temporary
    except OSError as error:
        raise SsmdiagError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is intact.",
            advice=advice_for(error),
        ) from error


def advice_for(error: OSError) -> str:
    """Return what to do about a file that cannot be written."""
    if error.errno in _FULL:
        return "make room and give --resume to go on from the last saved step."
    return "give write permission, or another --output." if error.errno in _FORBIDDEN else "give another --output."
