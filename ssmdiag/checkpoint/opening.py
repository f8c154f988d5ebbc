"""One file → its container, by what it holds and not by its suffix."""

from __future__ import annotations

import re
import struct
import zipfile
from pathlib import Path

from ssmdiag.checkpoint.budget import require_file, shortened
from ssmdiag.checkpoint.checkpoint import Container
from ssmdiag.checkpoint.formats.zip_file import is_zip
from ssmdiag.checkpoint.sources import LocalFile, Source
from ssmdiag.errors import CheckpointError, PartialModelError


def open_container(path: Path) -> Container:
    """Open one file of this machine by what it is. Raises CheckpointError, OSError."""
    require_file(path)
    try:
        return open_source(LocalFile(path))
    except EOFError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error}).", advice="save or download it again; wait while it is written."
        ) from error


def open_source(source: Source) -> Container:
    """Open one file, wherever it is, by what it is. Raises CheckpointError, EOFError, OSError."""
    path = source.path
    head = bytes(source.read(0, min(256, source.size)))
    if not head:
        raise CheckpointError(f"{path.name} is empty (0 bytes).", advice="save or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights.", advice="git lfs pull, then inspect it again."
        )
    if path.name.startswith("state-") and path.suffix == ".state":
        raise CheckpointError(
            f"{path.name} is what `ssmdiag retrain --resume` goes on from: weights of several arms, and no checkpoint.",
            advice="name a step-….safetensors in the folder of an arm.",
        )
    for part, what, advice in _PARTS:
        if part.search(path.name):
            raise PartialModelError(f"{path.name} is {what}.", advice=advice.format(folder=path.parent))
    for magic, kind, advice in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path.name} is {kind}, which ssmdiag does not read.", advice=advice)
    if head.startswith(b"GGUF"):
        from ssmdiag.checkpoint.formats.gguf_file import GgufFile

        return GgufFile(source)
    if head.startswith(b"PK\x03\x04") or is_zip(source):
        return _open_zip(source)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        from ssmdiag.checkpoint.formats.safetensors_file import SafetensorsFile

        return SafetensorsFile(source)
    if head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        from ssmdiag.checkpoint.formats.torch_file import TorchFile

        return TorchFile(source)
    raise CheckpointError(
        f"{path.name} is not a checkpoint ssmdiag knows (it begins with {head[:8]!r}).",
        expected="safetensors, a torch file (.pt .pth .bin .ckpt), .npz, .gguf, or a model directory",
        advice=_CONVERT.get(path.suffix, "save the state dict with safetensors.torch.save_file."),
    )


_FOREIGN = (
    (b"\x89HDF", "an HDF5 file (Keras, netCDF)", "copy its arrays into an .npz with h5py and numpy.savez."),
    (b"\x93NUMPY", "a single NumPy array", "numpy.savez('model.npz', name=array, …) keeps the names."),
    (b"\x1f\x8b", "a gzip archive", "unpack it first."),
    (b"<!DOCTYPE", "a web page, not the file it should be", "download it again, with access rights."),
    (b"<html", "a web page, not the file it should be", "download it again, with access rights."),
)

_PARTS = (
    (
        re.compile(r"\.distcp$"),
        "what one rank wrote of a torch.distributed checkpoint",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt",
    ),
    (
        re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt$"),
        "one rank's part of what DeepSpeed's ZeRO split: optimiser and weights without names",
        "python zero_to_fp32.py DIR OUT, with the folder that holds the file `latest`, and inspect the result.",
    ),
)
"""What is a part of a model by its name alone, whatever is in it."""

_CONVERT = {
    ".msgpack": "flax.serialization.msgpack_restore it and numpy.savez its flattened arrays.",
    ".eqx": "Equinox stores no names: numpy.savez the leaves under the names of their fields.",
    ".onnx": "inspect the checkpoint it was exported from.",
    ".nemo": "unpack it (tar) and inspect the weights inside.",
    ".tar": "unpack it first.",
}


def _open_zip(source: Source) -> Container:
    from ssmdiag.checkpoint.formats.zip_file import ZipError, open_zip

    try:
        with open_zip(source) as archive:
            members = archive.namelist()
    except ZipError as error:
        raise CheckpointError(
            f"{source.name} is a zip archive that is not read: {error}.",
            expected="what torch.save and numpy.savez write",
            advice="save it again, without compression; or unpack it and inspect what is inside.",
        ) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error):
        members = []
    if not members:
        raise CheckpointError(
            f"{source.name} is torn: a zip archive ({source.size:,} bytes) without its table of contents.",
            advice="the download or the save was cut short; get the file again.",
        )
    if any(member.endswith("constants.pkl") for member in members):
        raise CheckpointError(
            f"{source.name} is a TorchScript archive, which holds code.",
            advice="torch.save(torch.jit.load(path).state_dict(), 'weights.pt') and inspect that.",
        )
    if any(member.endswith("data.pkl") for member in members):
        from ssmdiag.checkpoint.formats.torch_file import TorchFile

        return TorchFile(source)
    if any(member.endswith(".npy") for member in members):
        from ssmdiag.checkpoint.formats.npz_file import NpzFile

        return NpzFile(source)
    raise CheckpointError(
        f"{source.name} is a zip archive without tensors (it holds {shortened(', '.join(members[:4]))}).",
        expected="an .npz or a file written by torch.save",
        advice="unpack it and inspect the checkpoint inside.",
    )
