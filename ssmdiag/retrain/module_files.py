"""What training a module leaves on disk; the layout is that of `saving`.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, folded back: its own code loads it, strict=True
    FOLDER/ARM/config.json               the model's settings
    FOLDER/state-module-….state          weights as trained, optimiser, losses and step

A state dict that safetensors cannot hold (complex128, extra state) is written as a torch file, `step-00100.pt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ssmdiag.errors import ConfigurationError, SsmdiagError
from ssmdiag.reparam import folded_state_dict
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.results import Point
from ssmdiag.retrain.saving import STATE_VERSION, checkpoint_path, replacing, state_path, write

if TYPE_CHECKING:
    from ssmdiag.retrain.module_training import ModuleRun

_NOT_IN_SAFETENSORS = frozenset({torch.complex128, torch.complex32})


def save_module(folder: Path, arm: Arm, module: nn.Module, settings: bytes, step: int, budget: Budget) -> Path:
    """Write the module's folded state dict and its settings; return the checkpoint's path. Raises SsmdiagError."""
    state: dict[str, Any] = folded_state_dict(module)
    plain = all(isinstance(value, Tensor) and value.dtype not in _NOT_IN_SAFETENSORS for value in state.values())
    path = checkpoint_path(folder, arm, step, budget).with_suffix(".safetensors" if plain else ".pt")
    write(path.with_name("config.json"), settings)
    with replacing(path) as temporary, _disk_errors():
        if plain:
            # Tied weights stand under each of their names, as load_state_dict(strict=True) asks for.
            tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
            save_file(tensors, temporary, {"step": str(step), "arm": json.dumps(asdict(arm))})
        else:
            torch.save({name: _on_cpu(value) for name, value in state.items()}, temporary)
    return path


def checkpoints_of(folder: Path, arm: Arm, budget: Budget, last: int) -> tuple[Path, ...]:
    """Return an arm's checkpoints of a run of this budget, up to a step; what other runs left is not among them."""
    plain = [checkpoint_path(folder, arm, step, budget) for step in range(last + 1) if budget.keeps(step)]
    return tuple(path for each in plain for path in (each, each.with_suffix(".pt")) if path.exists())


def save_module_state(
    folder: Path,
    arm: Arm,
    source: str,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    run: ModuleRun,
    budget: Budget,
) -> None:
    """Write what is needed to go on from here."""
    state = {
        "version": STATE_VERSION,
        "arm": asdict(arm),
        "source": source,
        "budget": asdict(budget),
        "step": run.step,
        "seconds": run.seconds,
        "diverged_at": run.diverged_at,
        "history": [asdict(point) for point in run.history],
        "module": module.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    with replacing(module_state_path(folder, arm)) as temporary, _disk_errors():
        torch.save(state, temporary)


def load_module_state(
    folder: Path,
    arm: Arm,
    source: str,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    run: ModuleRun,
    budget: Budget,
) -> None:
    """Put back the state of this arm, if there is one. Raises ConfigurationError for another model's or budget's."""
    path = module_state_path(folder, arm)
    if not path.exists():
        return
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        different = [
            f"{what} {was} then, {now} now"
            for what, was, now in [
                ("model", state["source"], source),
                *((key, state["budget"].get(key), value) for key, value in asdict(budget).items()),
            ]
            if was != now
        ]
    except Exception as error:  # a torn file can fail in any way
        raise SsmdiagError(
            f"{path}: not a state to resume from ({type(error).__name__}: {error}).",
            advice="delete it to start this arm anew.",
        ) from error
    if different:
        raise ConfigurationError(
            f"--resume: {path.name} was trained otherwise: {', '.join(different)}.",
            advice="ask for the same again, or start in another --output.",
        )
    try:
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"--resume: {path.name} holds another model: {str(error).splitlines()[0]}",
            advice="ask for the same again, or start in another --output.",
        ) from error
    run.step, run.seconds, run.diverged_at = state["step"], state["seconds"], state["diverged_at"]
    run.history = [Point(**point) for point in state["history"]]


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise as OSError what torch and safetensors raise when a file cannot be written."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def module_state_path(folder: Path, arm: Arm) -> Path:
    """Return where the state of an arm of a module is kept."""
    path = state_path(folder, (arm,))
    return path.with_name(path.name.replace("state-", "state-module-", 1))


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
