"""`read_checkpoint`: a file, a shard index or a model directory wherever it is, a live model or a state dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ssmdiag.checkpoint.budget import naming, shortened
from ssmdiag.checkpoint.checkpoint import Checkpoint
from ssmdiag.checkpoint.file_names import INDEX
from ssmdiag.checkpoint.location import Location, locate
from ssmdiag.checkpoint.remote_path import RemotePath
from ssmdiag.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    CheckpointLike: TypeAlias = Checkpoint | str | os.PathLike[str] | RemotePath | nn.Module | Mapping[Any, Any]
    """What a checkpoint can be read from."""


def read_checkpoint(source: CheckpointLike) -> Checkpoint:
    """Return the checkpoint at a file, a shard index or a model directory, of a live model or of a state dict.

    Values stay where they are. A path may be an address: `hf://org/model`, optionally with @revision and the path of a
    file, `https://`, `s3://`, `gs://`, or another that fsspec knows. Of a model, settings are those of `model.config`;
    `read_module` and `read_state_dict` take others. A checkpoint is returned as it is.

    Raises
    ------
    CheckpointError
        Nothing readable is there, or no values. `UnsafePickleError` if a pickle asks for code to be run,
        `PartialModelError` if what is there is a part of a model, `RemoteError` if it is not on this machine and does
        not come.
    """
    if isinstance(source, Checkpoint):
        return source
    if isinstance(source, (str, RemotePath)):
        return _read_path(locate(source))
    if isinstance(source, os.PathLike):
        return _read_path(Path(source))
    return _read_memory(source)


def _read_memory(source: nn.Module | Mapping[Any, Any]) -> Checkpoint:
    from torch import nn

    from ssmdiag.checkpoint.live import read_module
    from ssmdiag.checkpoint.state_dict import read_state_dict
    from ssmdiag.checkpoint.wholeness import require_whole

    if isinstance(source, nn.Module):
        checkpoint = read_module(source)
    elif isinstance(source, Mapping):
        checkpoint = read_state_dict(source)
    else:
        raise TypeError(
            "a checkpoint is read from a path, an address, a torch.nn.Module or a mapping of tensors, not from "
            f"a {type(source).__name__}"
        )
    require_whole(checkpoint)
    return checkpoint


def _read_path(path: Location) -> Checkpoint:
    # Here, so that commands which read no checkpoint do not wait for the formats.
    from ssmdiag.checkpoint.directories import read_directory, read_single
    from ssmdiag.checkpoint.optimizer.optimizer_state import read_optimizer_state
    from ssmdiag.checkpoint.shards import read_index
    from ssmdiag.checkpoint.wholeness import require_whole

    try:
        with naming(path):
            if path.is_dir():
                checkpoint = read_directory(path)
            elif path.name.endswith(INDEX) and path.exists():
                checkpoint = read_index(path)
            else:
                checkpoint = read_single(path)
            require_whole(checkpoint)
            return replace(checkpoint, read_optimizer=read_optimizer_state)
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be opened: permission denied.", advice="chmod +r, or copy it."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{shortened(str(error.filename or path), 200)} cannot be read: {error.strerror or error}.",
            advice="check the disk and the path; copying the file may help.",
        ) from error
