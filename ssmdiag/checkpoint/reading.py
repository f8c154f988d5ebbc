"""`read_checkpoint`: a file, a shard index or a model directory, read as one checkpoint, wherever it is."""

from __future__ import annotations

from dataclasses import replace

from ssmdiag.checkpoint.budget import naming, shortened
from ssmdiag.checkpoint.checkpoint import Checkpoint
from ssmdiag.checkpoint.file_names import INDEX
from ssmdiag.checkpoint.location import Location, locate
from ssmdiag.errors import CheckpointError


def read_checkpoint(path: str | Location) -> Checkpoint:
    """Return the checkpoint at a file, a shard index or a model directory; values stay where they are.

    The path may be an address: `hf://org/model`, optionally with @revision and the path of a file, `https://`, `s3://`,
    `gs://`, or another that fsspec knows.

    Raises
    ------
    CheckpointError
        Nothing readable is there. `UnsafePickleError` if a pickle asks for code to be run, `PartialModelError` if
        what is there is a part of a model, `RemoteError` if it is not on this machine and does not come.
    """
    # Here, so that commands which read no checkpoint do not wait for the formats.
    from ssmdiag.checkpoint.directories import read_directory, read_single
    from ssmdiag.checkpoint.optimizer.optimizer_state import read_optimizer_state
    from ssmdiag.checkpoint.shards import read_index
    from ssmdiag.checkpoint.wholeness import require_whole

    path = locate(path)
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
