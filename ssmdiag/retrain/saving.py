"""What a training run writes: checkpoints that other tools can read, and a state to resume from, which is not one.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, named as its own code names its tensors
    FOLDER/ARM/config.json               what readers of the checkpoints need
    FOLDER/state-….state                 weights as trained, optimiser, losses and step: see `run_folder`

A state dict that safetensors cannot hold (complex128, extra state) is written as a torch file, `step-00100.pt`.
Every file is written under another name and renamed: a full disk or a kill leaves the old one intact.
"""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ssmdiag.errors import SsmdiagError
from ssmdiag.output import temporaries
from ssmdiag.retrain.arms import Arm, Budget

_NOT_IN_SAFETENSORS = (torch.complex128, torch.complex32)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""Numbers of the errors of a disk that is full; torch and safetensors give none."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Contents:
    """What a checkpoint of one arm holds."""

    state: Mapping[str, Any]
    """The state dict that the model's own code loads."""
    metadata: Mapping[str, str]
    """What a safetensors file says beside its step."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Files that lie beside it, by name, such as config.json."""


def save_checkpoint(folder: Path, arm: Arm, step: int, budget: Budget, contents: Contents) -> Path:
    """Write one arm's checkpoint and what lies beside it; return its path. Raises SsmdiagError."""
    state = contents.state
    plain = all(isinstance(value, Tensor) and value.dtype not in _NOT_IN_SAFETENSORS for value in state.values())
    path = checkpoint_path(folder, arm, step, budget).with_suffix(".safetensors" if plain else ".pt")
    for name, content in contents.beside.items():
        if step == 0 or not path.with_name(name).exists():
            write(path.with_name(name), content)
    # Tied weights are stored under each of their names, as load_state_dict(strict=True) requires.
    own = {
        name: value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
    with replacing(path) as temporary:
        if plain:
            save_file(own, temporary, {"step": str(step), **contents.metadata})
            _order_metadata(temporary)
        else:
            torch.save(own, temporary)
    return path


def _order_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: safetensors writes them in another one every time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def checkpoint_path(folder: Path, arm: Arm, step: int, budget: Budget) -> Path:
    """Return where an arm's checkpoint of a step is kept."""
    return folder / arm.label / f"step-{step:0{len(str(budget.steps))}d}.safetensors"


def checkpoints_of(folder: Path, arm: Arm, budget: Budget, last: int) -> tuple[Path, ...]:
    """Return an arm's checkpoints of a run of this budget, up to a step; what other runs left is not among them."""
    plain = [checkpoint_path(folder, arm, step, budget) for step in range(last + 1) if budget.keeps(step)]
    return tuple(path for each in plain for path in (each, each.with_suffix(".pt")) if path.exists())


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
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise SsmdiagError(
            f"{path}: cannot be written ({reason}); the old file is unchanged.", advice=advice_for(error)
        ) from error


def advice_for(error: Exception) -> str:
    """Return what to do about a file that cannot be written."""
    number = getattr(error, "errno", None)
    if number in _FULL:
        return "make room and give --resume to go on from the last saved step."
    return "give write permission, or another --output." if number in _FORBIDDEN else "give another --output."
