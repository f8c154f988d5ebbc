"""Kernels of a model as a .safetensors or .npz file, with metadata on each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmdiag.checkpoint import Checkpoint
from ssmdiag.cores import one_thread
from ssmdiag.errors import LayerError
from ssmdiag.guard import guard
from ssmdiag.kernel.archive import create_archive
from ssmdiag.kernel.dense import realise
from ssmdiag.kernel.kernel import MEMORY_LIMIT, compute_kernel
from ssmdiag.kernel.powers import profile
from ssmdiag.kernel.status import Status
from ssmdiag.recurrence.modal import Recurrence
from ssmdiag.version import __version__

UNITS = {
    "kernel": "output per unit of input",
    "retention": "share of a state that is left, the mean of |λ̄|^t over modes",
}
PART = 2**22
"""Number of values made contiguous at a time."""


@dataclass(frozen=True)
class WrittenKernels:
    """The content of a kernel file."""

    length: int
    size: int
    """Bytes of all values."""
    tensors: Mapping[str, Mapping[str, Any]]
    """Metadata of each tensor, from `describe`, by its name."""
    problems: tuple[LayerError, ...] = ()
    """Why kernels are missing: errors in reading a layer."""


@one_thread()
def write_kernels(
    recurrences: Iterable[Recurrence],
    length: int,
    output: Path,
    *,
    source: Checkpoint,
    channel: int | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> WrittenKernels:
    """Write the kernel of every recurrence, float32, under `<layer>.kernel`; return what was written.

    Each is (copy, channel, lag), or (output, input, lag) for layers with many inputs; selective layers give
    their retention, (1, channel, lag), under `<layer>.retention`. `channel` is the one that the recurrences were
    restricted to, if any. The file appears complete or not at all; one kernel at a time is in memory.
    Raises SsmdiagError where the file exists, has another ending or cannot be written, KernelSizeError
    where one kernel takes more than `memory_limit` bytes, LayerError where no layer has a kernel.
    """
    tensors: dict[str, dict[str, Any]] = {}
    problems: list[LayerError] = []
    size = 0
    with create_archive(output) as archive:
        for recurrence in recurrences:
            kind = "retention" if recurrence.layout == "none" else "kernel"
            try:
                with guard(recurrence.layer, f"its {kind}"):
                    recurrence = realise(recurrence)
                    kernel = compute_kernel(profile(recurrence), length, dtype=torch.float32, memory_limit=memory_limit)
                    origin = describe(recurrence)
            except LayerError as error:
                problems.append(error)
                continue
            parts = list(_split(kernel.values))
            name = f"{recurrence.layer}.{kind}"
            if name in tensors:  # two families in one module
                name = f"{recurrence.layer} ({recurrence.family}).{kind}"
            archive.add(name, kernel.values.shape, (part.contiguous().cpu() for part in parts))
            size += kernel.values.nbytes
            tensors[name] = origin | {
                "layer": recurrence.layer,
                "channel": channel,
                "channels": len(kernel.status),
                "units": UNITS[kind],
                "status": _count(kernel.status),
                "not_finite": sum(int((~part.isfinite()).sum()) for part in parts),
            }
        if problems and not tensors:
            raise problems[0]
        units = "; ".join(f"{kind}: {unit}" for kind, unit in UNITS.items())
        archive.describe({
            "ssmdiag_version": __version__,
            "source": source.path.name,
            "length": str(length),
            "units": f"lags 0 … length − 1 in steps; {units}",
            "layers": json.dumps(tensors, ensure_ascii=False),
        })  # fmt: skip
    return WrittenKernels(length, size, tensors, tuple(problems))


def describe(recurrence: Recurrence) -> dict[str, Any]:
    """Return a kernel's origin: family, step Δ, operating point, and a hash of what it was computed from."""
    step = recurrence.step
    return {
        "family": recurrence.family,
        "spelling": recurrence.spelling,
        "time_invariant": recurrence.time_invariant,
        "operating_point": recurrence.operating_point,
        "step": None if step is None else {"min": float(step.min()), "max": float(step.max())},
        "assumptions": {a.option: a.value for a in recurrence.assumptions},
        "tensors": list(recurrence.tensors),
        "sha256": _hash(recurrence),
    }


def _hash(recurrence: Recurrence) -> str:
    """Return the SHA-256 of ℓ, B̄, C and taps, and of Ā, B̄ and C where the state matrix is dense."""
    parts = [recurrence.log_eigenvalues, recurrence.input_matrix, recurrence.output_matrix, recurrence.taps]
    if recurrence.dense is not None:
        dense = recurrence.dense()
        parts += [dense.state_matrix, dense.input_matrix, dense.output_matrix]
    digest = hashlib.sha256()
    for values in parts:
        if values is not None:
            digest.update(values.resolve_conj().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def _count(status: Tensor) -> dict[str, int]:
    """Return how many channels have each `Status` but KNOWN, by its name in lower case."""
    counts = torch.bincount(status.long(), minlength=len(Status)).tolist()
    return {code.name.lower(): counts[code] for code in Status if code is not Status.KNOWN and counts[code]}


def _split(values: Tensor) -> Iterator[Tensor]:
    """Yield views of the values, a few MB each, in the order of a contiguous tensor."""
    for plane in values:
        yield from plane.split(max(1, PART // plane.shape[-1]))
