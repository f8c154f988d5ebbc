"""What training a module leaves on disk; the layout is that of `saving`.

    FOLDER/ARM/step-00100.safetensors    one arm at one step, folded back: its own code loads it, strict=True
    FOLDER/ARM/config.json               the model's settings
    FOLDER/state-….state                 weights as trained, optimiser, losses and step

A state dict that safetensors cannot hold (complex128, extra state) is written as a torch file, `step-00100.pt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ssmdiag.reparam import folded_state_dict
from ssmdiag.retrain.arms import Arm, Budget
from ssmdiag.retrain.saving import checkpoint_path, in_order, replacing, write

_NOT_IN_SAFETENSORS = frozenset({torch.complex128, torch.complex32})


def save_module(
    folder: Path, arm: Arm, module: nn.Module, beside: Mapping[str, bytes], step: int, budget: Budget
) -> Path:
    """Write the module's folded state dict, and files `beside` it by name; return its path. Raises SsmdiagError."""
    state: dict[str, Any] = folded_state_dict(module)
    plain = all(isinstance(value, Tensor) and value.dtype not in _NOT_IN_SAFETENSORS for value in state.values())
    path = checkpoint_path(folder, arm, step, budget).with_suffix(".safetensors" if plain else ".pt")
    for name, content in beside.items():
        if step == 0 or not path.with_name(name).exists():
            write(path.with_name(name), content)
    with replacing(path) as temporary, _disk_errors():
        if plain:
            # Tied weights stand under each of their names, as load_state_dict(strict=True) asks for.
            tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
            save_file(tensors, temporary, {"step": str(step), "arm": json.dumps(asdict(arm))})
            with temporary.open("r+b") as file:
                head = file.read(8)
                head += file.read(int.from_bytes(head, "little"))
                file.seek(0)
                file.write(in_order(head))
        else:
            torch.save({name: _on_cpu(value) for name, value in state.items()}, temporary)
    return path


def checkpoints_of(folder: Path, arm: Arm, budget: Budget, last: int) -> tuple[Path, ...]:
    """Return an arm's checkpoints of a run of this budget, up to a step; what other runs left is not among them."""
    plain = [checkpoint_path(folder, arm, step, budget) for step in range(last + 1) if budget.keeps(step)]
    return tuple(path for each in plain for path in (each, each.with_suffix(".pt")) if path.exists())


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raise as OSError what torch and safetensors raise when a file cannot be written."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value
