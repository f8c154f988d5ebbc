"""What a training run leaves on disk: checkpoints others can read, and a state to resume from.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, named as the published code names its tensors
    FOLDER/ARM/config.json               sequence length and map, for whoever reads the checkpoints
    FOLDER/state-….pt                    optimiser, losses and step of a group of arms

Every file is written under another name and renamed: a full disk or a kill leaves the old one intact.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.retrain.results import Point

if TYPE_CHECKING:
    from ssmdiag.retrain.adamw import ArmAdamW
    from ssmdiag.retrain.arms import Arm, Budget
    from ssmdiag.retrain.model import Ensemble

STATE_VERSION = 1


def save_arm(folder: Path, ensemble: Ensemble, position: int, step: int, budget: Budget, length: int) -> Path:
    """Write one arm's checkpoint and return its path."""
    from safetensors.torch import save

    arm = ensemble.arms[position]
    own = folder / arm.label
    own.mkdir(parents=True, exist_ok=True)
    path = own / f"step-{step:0{len(str(budget.steps))}d}.safetensors"
    settings = {"seq_len": length, "rate_map": arm.param, "arm": asdict(arm)}
    write(own / "config.json", json.dumps(settings, indent=2).encode() + b"\n")
    metadata = {"step": str(step), "rate_map": arm.param}
    write(path, save(ensemble.state_dict(position), metadata))
    return path


def save_state(folder: Path, ensemble: Ensemble, optimiser: ArmAdamW, run: Any, budget: Budget) -> None:
    """Write what is needed to go on from here."""
    import torch

    state = {
        "version": STATE_VERSION,
        "arms": [asdict(arm) for arm in ensemble.arms],
        "settings": asdict(ensemble.settings),
        "budget": asdict(budget),
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
    """Put back the state of these arms, if there is one. Raises ConfigurationError for another model's or budget's."""
    import torch

    path = state_path(folder, ensemble.arms)
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        different = {
            "model": (state["settings"], asdict(ensemble.settings)),
            "budget": (state["budget"], asdict(budget)),
        }
    except Exception as error:  # a torn file can fail in any way
        raise SsmdiagError(
            f"{path}: not a state to resume from ({type(error).__name__}: {error}).",
            advice="delete it to start these arms anew.",
        ) from error
    for what, (was, asked) in different.items():
        if was != asked:
            changed = ", ".join(
                f"{key} {was.get(key)} then, {asked[key]} now" for key in asked if was.get(key) != asked[key]
            )
            raise ConfigurationError(
                f"--resume: {path.name} was trained with another {what}: {changed}.",
                advice="ask for the same again, or start in another --output.",
            )
    with torch.no_grad():
        for name, value in ensemble.parameters.items():
            value.copy_(state["parameters"][name])
    optimiser.load(state["optimiser"])
    run.step, run.seconds, run.diverged = state["step"], state["seconds"], state["diverged"]
    run.history = [[Point(**point) for point in points] for points in state["history"]]


def state_path(folder: Path, arms: tuple[Arm, ...]) -> Path:
    """Return where the state of a group of arms is kept: a name by what the arms are."""
    digest = hashlib.sha256(json.dumps([asdict(arm) for arm in arms]).encode()).hexdigest()[:12]
    return folder / f"state-{digest}.pt"


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write a file; once that is on disk it takes the place of `path`. Raises SsmdiagError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SsmdiagError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is intact.",
            advice="make room and give --resume to go on from the last saved step.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
