"""What a training run leaves on disk: checkpoints others can read, and a state to resume from, which is none of them.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, named as the published code names its tensors
    FOLDER/ARM/config.json               sequence length and map, for whoever reads the checkpoints
    FOLDER/state-….state                 optimiser, losses and step of a group of arms

Every file is written under another name and renamed: a full disk or a kill leaves the old one intact.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag import temporaries
from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.results import Point

if TYPE_CHECKING:
    from ssmdiag.retrain.adamw import ArmAdamW
    from ssmdiag.retrain.arms import Arm, Budget
    from ssmdiag.retrain.model import Ensemble

STATE_VERSION = 1
STATE = ".state"
"""Suffix of a resumable state: one that no reader of checkpoints takes for its own."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)
"""Numbers of the errors of a disk that is full; torch and safetensors give none."""
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_PARTS = frozenset({
    "version", "arms", "settings", "budget", "data", "step", "seconds", "diverged", "history",
    "parameters", "optimiser",
})  # fmt: skip


def save_arm(folder: Path, ensemble: Ensemble, position: int, step: int, budget: Budget, length: int) -> Path:
    """Write one arm's checkpoint and return its path."""
    from safetensors.torch import save

    arm = ensemble.arms[position]
    path = checkpoint_path(folder, arm, step, budget)
    settings = {"seq_len": length, "rate_map": arm.param, "arm": asdict(arm)}
    write(path.with_name("config.json"), json.dumps(settings, indent=2).encode() + b"\n")
    metadata = {"step": str(step), "rate_map": arm.param}
    write(path, _in_order(save(ensemble.state_dict(position), metadata)))
    return path


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in order: safetensors writes them in another one every time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def checkpoint_path(folder: Path, arm: Arm, step: int, budget: Budget) -> Path:
    """Return where an arm's checkpoint of a step is kept."""
    return folder / arm.label / f"step-{step:0{len(str(budget.steps))}d}.safetensors"


def checkpoints_of(folder: Path, arm: Arm, budget: Budget, last: int) -> tuple[Path, ...]:
    """Return an arm's checkpoints of a run of this budget, up to a step; what other runs left is not among them."""
    paths = [checkpoint_path(folder, arm, step, budget) for step in range(last + 1) if budget.keeps(step)]
    return tuple(path for path in paths if path.exists())


def save_state(folder: Path, ensemble: Ensemble, optimiser: ArmAdamW, run: Any, budget: Budget) -> None:
    """Write what is needed to go on from here."""
    import torch

    state = {
        "version": STATE_VERSION,
        "arms": [asdict(arm) for arm in ensemble.arms],
        "settings": asdict(ensemble.settings),
        "budget": asdict(budget),
        "data": run.data,
        "step": run.step,
        "seconds": run.seconds,
        "diverged": dict(run.diverged),
        "history": [[asdict(point) for point in points] for points in run.history],
        "parameters": {name: value.detach().cpu() for name, value in ensemble.parameters.items()},
        "optimiser": {name: value.cpu() for name, value in optimiser.state().items()},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write(state_path(folder, ensemble.arms), buffer.getvalue())


def load_state(folder: Path, ensemble: Ensemble, optimiser: ArmAdamW, run: Any, budget: Budget) -> None:
    """Put back the state of these arms, if there is one.

    Raises ConfigurationError where it is of another model, budget or data, or its arms were trained in other groups.
    """
    path = state_path(folder, ensemble.arms)
    if not path.exists():
        _require_no_other_group(folder, ensemble.arms)
        return
    state = _read_state(path)
    different = {
        "model": (state["settings"], asdict(ensemble.settings)),
        "budget": (state["budget"], asdict(budget)),
    }
    for what, (was, asked) in different.items():
        if was != asked:
            changed = ", ".join(
                f"{key} {was.get(key)} then, {asked[key]} now" for key in asked if was.get(key) != asked[key]
            )
            raise ConfigurationError(
                f"--resume: {path.name} was trained with another {what}: {changed}.",
                advice="ask for the same again, or start in another --output.",
            )
    if state["data"] != run.data:
        raise ConfigurationError(
            f"--resume: {path.name} was trained on other data, or from other weights.",
            advice="ask for the same --task, --length, --samples and files again, or start in another --output.",
        )
    for name, value in ensemble.parameters.items():
        value.detach().copy_(state["parameters"][name])
    optimiser.load(state["optimiser"])
    run.step, run.seconds, run.diverged = state["step"], state["seconds"], state["diverged"]
    run.history = [[Point(**point) for point in points] for points in state["history"]]


def _read_state(path: Path) -> dict[str, Any]:
    """Return a state. Raises SsmdiagError for a file that is none."""
    import torch

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        missing = _PARTS - state.keys()
    except Exception as error:  # a torn file can fail in any way
        raise SsmdiagError(
            f"{path}: not a state to resume from ({type(error).__name__}: {error}).",
            advice="delete it to start these arms anew.",
        ) from error
    if missing or state["version"] != STATE_VERSION:
        raise SsmdiagError(
            f"{path}: a state of version {state.get('version')} without {', '.join(sorted(missing)) or 'gaps'}.",
            expected=f"version {STATE_VERSION}",
            advice="delete it to start these arms anew.",
        )
    return state


def _require_no_other_group(folder: Path, arms: tuple[Arm, ...]) -> None:
    """Raise where one of these arms was begun in a group of others: its state would be left aside unseen."""
    wanted = [asdict(arm) for arm in arms]
    for path in sorted(folder.glob(f"state-[0-9a-f]*{STATE}")):
        there = _read_state(path)["arms"]
        shared = [arm for arm, fields in zip(arms, wanted, strict=True) if fields in there]
        if shared:
            raise ConfigurationError(
                f"--resume: {path.name} has {shared[0].label} in a group of {len(there)} arms; now it is one of "
                f"{len(arms)}.",
                expected="the same arms in the same order, and the same --together",
                advice="ask for the same again, or start in another --output.",
            )


def state_path(folder: Path, arms: tuple[Arm, ...]) -> Path:
    """Return where the state of a group of arms is kept: a name by what the arms are."""
    digest = hashlib.sha256(json.dumps([asdict(arm) for arm in arms]).encode()).hexdigest()[:12]
    return folder / f"state-{digest}{STATE}"


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


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
