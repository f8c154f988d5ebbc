"""Kernels of a model as a .safetensors or .npz file, with what they are written beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save

from ssmdiag import __version__
from ssmdiag.errors import SsmdiagError
from ssmdiag.kernel.kernel import MEMORY_LIMIT, compute_kernel
from ssmdiag.memory import profile

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint
    from ssmdiag.recurrence import Recurrence

SUFFIXES = (".safetensors", ".npz")


def write_kernels(
    recurrences: Sequence[Recurrence], length: int, output: Path, *, source: Checkpoint, quiet: bool = True
) -> str:
    """Write the kernel of every recurrence, float32, under `<layer>.kernel`; return what was written, in words.

    Each is (copy, channel, lag), or (output, input, lag) of layers with many inputs; selective layers give
    their retention, (1, channel, lag), under `<layer>.retention`. The file appears whole or not at all.
    Raises SsmdiagError where the file exists, has another ending or cannot be written, KernelSizeError
    where the kernels do not fit into memory.
    """
    if output.suffix not in SUFFIXES:
        raise SsmdiagError(f"--output {output}: unknown ending.", expected=f"one of {', '.join(SUFFIXES)}")
    if output.exists():
        raise SsmdiagError(f"--output {output}: exists already.", advice="remove it, or choose another name.")
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, dict[str, object]] = {}
    left = MEMORY_LIMIT
    for recurrence in _progress(recurrences, quiet):
        kernel = compute_kernel(profile(recurrence), length, dtype=torch.float32, memory_limit=left)
        left -= kernel.values.nbytes
        name = f"{recurrence.layer}.{'retention' if recurrence.layout == 'none' else 'kernel'}"
        tensors[name] = kernel.values.contiguous().cpu()
        about[name] = describe(recurrence)
    metadata = {
        "ssmdiag_version": __version__,
        "source": source.path.name,
        "length": str(length),
        "units": "output per unit of input at lag 0 … length − 1, in steps",
        "layers": json.dumps(about, ensure_ascii=False),
    }
    _write_whole(output, tensors, metadata)
    size = sum(tensor.nbytes for tensor in tensors.values())
    return f"{len(tensors)} {'kernel' if len(tensors) == 1 else 'kernels'} of {length:,} lags, {size / 1e6:.1f} MB"


def describe(recurrence: Recurrence) -> dict[str, object]:
    """Return a kernel's origin: family, step Δ, operating point, and a hash of what it was computed from."""
    step = recurrence.step
    digest = hashlib.sha256()
    for values in (recurrence.log_eigenvalues, recurrence.input_matrix, recurrence.output_matrix):
        if values is not None:
            digest.update(values.resolve_conj().contiguous().cpu().numpy().tobytes())
    return {
        "family": recurrence.family,
        "spelling": recurrence.spelling,
        "time_invariant": recurrence.time_invariant,
        "operating_point": recurrence.operating_point,
        "step": None if step is None else {"min": float(step.min()), "max": float(step.max())},
        "assumptions": {a.option: a.value for a in recurrence.assumptions},
        "tensors": list(recurrence.tensors),
        "sha256": digest.hexdigest(),
    }


def _write_whole(output: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        if output.suffix == ".npz":
            import numpy as np

            with temporary.open("wb") as file:
                arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
                np.savez(file, **arrays, metadata=np.array(json.dumps(metadata)))
        else:
            temporary.write_bytes(save(tensors, metadata))
        temporary.replace(output)
    except OSError as error:
        raise SsmdiagError(f"--output {output}: cannot be written ({error.strerror or error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _progress(recurrences: Sequence[Recurrence], quiet: bool) -> Sequence[Recurrence]:
    if quiet:
        return recurrences
    from rich.console import Console
    from rich.progress import track

    return list(track(recurrences, "kernels", console=Console(stderr=True), transient=True))
