"""`read_checkpoint`: find out what a path is, open its containers, collect the tensors."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.checkpoint import Checkpoint, Container, collect
from ssmdiag.errors import CheckpointError

WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pt", "consolidated.safetensors", "consolidated.00.pth")
"""File names that hold a directory's weights, in the order they are looked for; `.index.json` after each."""

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return the checkpoint at a file, a shard index or a model directory; values stay on disk.

    Raises
    ------
    CheckpointError
        Nothing readable is there. `UnsafePickleError` if a pickle asks for code to be run.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _read_directory(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist.", advice=_neighbours(path))
        if path.name.endswith(".index.json"):
            return _read_index(path)
        return _read_file(path)
    except PermissionError as error:
        raise CheckpointError(
            f"{error.filename or path} cannot be opened: permission denied.", advice="chmod +r, or copy it."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _read_file(path: Path) -> Checkpoint:
    kind, container = _open(path)
    notes = tuple(getattr(container, "notes", ()))
    shard = re.search(r"-(\d{5})-of-(\d{5})\.", path.name)
    if shard:
        notes += (f"this is shard {int(shard[1])} of {int(shard[2])}; give the directory to read all of them",)
    metadata = getattr(container, "metadata", {})
    step = getattr(container, "train_step", None)
    return Checkpoint(
        path=path,
        format=kind,
        tensors=collect([container]),
        size=path.stat().st_size,
        config=_read_config(path.parent),
        hyper_parameters=getattr(container, "hyper_parameters", {}) or dict(metadata),
        train_step=step if step is not None else _train_step(path, metadata),
        notes=notes,
    )


def _read_directory(path: Path) -> Checkpoint:
    present = {entry.name for entry in path.iterdir()}
    for name in WEIGHTS:
        if name in present:
            return _read_file(path / name)
        if f"{name}.index.json" in present:
            return _read_index(path / f"{name}.index.json")
    candidates = sorted(name for name in present if name.endswith(SUFFIXES) and not name.startswith("."))
    candidates = [name for name in candidates if name not in ("training_args.bin", "optimizer.pt", "scheduler.pt")]
    indexes = sorted(name for name in present if name.endswith(".index.json"))
    if len(indexes) == 1:
        return _read_index(path / indexes[0])
    if len(candidates) == 1:
        return _read_file(path / candidates[0])
    shards = [name for name in candidates if re.search(r"-\d{5}-of-\d{5}\.", name)]
    if shards and len(shards) == len(candidates):
        return _read_shards(path, dict.fromkeys(shards), {})
    for sign, kind, advice in _DIRECTORIES:
        if any(re.fullmatch(sign, name) for name in present):
            raise CheckpointError(f"{path} is {kind}, which holds shards of tensors.", advice=advice)
    if candidates:
        some = ", ".join([*candidates[:6], *["…"][: len(candidates) - 6]])
        raise CheckpointError(
            f"{path} holds {len(candidates)} checkpoints: {some}",
            advice=f"name the files: ssmdiag inspect {path}/*{Path(candidates[0]).suffix}",
        )
    listing = ", ".join(sorted(present)[:6]) or "nothing"
    raise CheckpointError(
        f"{path} is a directory without a checkpoint; it holds {listing}.",
        expected=f"one of {', '.join(WEIGHTS)}, an index.json with shards, or one {' '.join(SUFFIXES)} file",
    )


_DIRECTORIES = (
    (
        r"zero_to_fp32\.py|global_step\d+|latest",
        "a DeepSpeed checkpoint",
        "run its zero_to_fp32.py and inspect the result.",
    ),
    (
        r"\.metadata|__\d+_\d+\.distcp",
        "a torch.distributed checkpoint",
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt",
    ),
    (
        r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|checkpoint",
        "an orbax or TensorFlow checkpoint",
        "restore it where it was written and numpy.savez('model.npz', **flat_params).",
    ),
)


def _read_index(path: Path) -> Checkpoint:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        promised: dict[str, set[str] | None] = {}
        for name, file in weight_map.items():
            names = promised.setdefault(str(file), set())
            assert names is not None
            names.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is not a shard index ({type(error).__name__}: {error}).",
            expected='{"weight_map": {tensor: file, …}}',
        ) from error
    return _read_shards(path.parent, promised, {"index": path.name})


def _read_shards(directory: Path, promised: Mapping[str, set[str] | None], origin: Mapping[str, str]) -> Checkpoint:
    """Open every shard; what the index promises and a shard lacks becomes a problem, not a crash."""
    containers: list[Container] = []
    problems: list[str] = []
    notes: list[str] = []
    kind, size = "", 0
    for file, names in sorted(promised.items()):
        shard = directory / file
        lost = f" ({len(names):,} tensors)" if names is not None else ""
        if Path(file).is_absolute() or ".." in Path(file).parts:
            problems.append(f"{origin.get('index')} points outside its directory: {file}; not opened")
            continue
        if not shard.exists():
            problems.append(f"shard {file} is missing{lost}")
            continue
        try:
            kind, container = _open(shard)
        except CheckpointError as error:
            problems.append(f"shard {file} cannot be read{lost}: {error.seen}")
            continue
        absent = sorted((names or set()) - set(container.names()))
        if absent:
            problems.append(
                f"shard {file} lacks {len(absent):,} tensor{'s' * (len(absent) > 1)} the index promises: "
                + ", ".join(absent[:3]) + (" …" if len(absent) > 3 else "")
            )  # fmt: skip
        containers.append(container)
        notes.extend(getattr(container, "notes", ()))
        size += shard.stat().st_size
    if not containers:
        raise CheckpointError(
            f"{directory}: none of its {len(promised)} shards can be read.\n  " + "\n  ".join(problems),
            advice="download them again.",
        )
    return Checkpoint(
        path=directory,
        format=f"{kind}, {len(containers)} shards",
        tensors=collect(containers),
        size=size,
        config=_read_config(directory),
        train_step=_train_step(directory, {}),
        notes=tuple(dict.fromkeys(notes)),
        problems=tuple(problems),
    )


def _open(path: Path) -> tuple[str, Any]:
    """Open one file by what it is; its suffix only serves the message when that fails."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        raise CheckpointError(f"{path.name} is empty (0 bytes).", advice="save or download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path.name} is a Git LFS pointer, not the weights.", advice="git lfs pull, then inspect it again."
        )
    for magic, kind, advice in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path.name} is {kind}, which ssmdiag does not read.", advice=advice)
    if head.startswith(b"PK\x03\x04") or zipfile.is_zipfile(path):
        return _open_zip(path)
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        from ssmdiag.checkpoint.safetensors_file import SafetensorsFile

        return "safetensors", SafetensorsFile(path)
    if head[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return _open_torch(path)
    raise CheckpointError(
        f"{path.name} is not a checkpoint ssmdiag knows (it begins with {head[:8]!r}).",
        expected="safetensors, a torch pickle (.pt .pth .bin .ckpt), .npz, or a model directory",
    )


_FOREIGN = (
    (b"GGUF", "a GGUF file", "inspect the safetensors it was converted from."),
    (b"\x89HDF", "an HDF5 file (Keras, netCDF)", "copy its arrays into an .npz with h5py and numpy.savez."),
    (b"\x93NUMPY", "a single NumPy array", "numpy.savez('model.npz', name=array, …) keeps the names."),
    (b"\x1f\x8b", "a gzip archive", "unpack it first."),
    (b"<!DOCTYPE", "a web page, not the file it should be", "download it again, with access rights."),
    (b"<html", "a web page, not the file it should be", "download it again, with access rights."),
)


def _open_zip(path: Path) -> tuple[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    except zipfile.BadZipFile:
        members = []
    if not members:
        raise CheckpointError(
            f"{path.name} is torn: a zip archive ({path.stat().st_size:,} bytes) without its table of contents.",
            advice="the download or the save was cut short; get the file again.",
        )
    if any(member.endswith(".npy") for member in members):
        from ssmdiag.checkpoint.npz_file import NpzFile

        return "npz", NpzFile(path)
    if any(member.endswith("data.pkl") for member in members):
        return _open_torch(path)
    raise CheckpointError(
        f"{path.name} is a zip archive without tensors (it holds {', '.join(members[:4])}).",
        expected="an .npz or a file written by torch.save",
    )


def _open_torch(path: Path) -> tuple[str, Any]:
    from ssmdiag.checkpoint.torch_file import TorchFile

    file = TorchFile(path)
    return file.container, file


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _train_step(path: Path, metadata: Mapping[str, str]) -> int | None:
    """Return the optimiser step from metadata or from a name such as `step-01000` or `checkpoint-500`."""
    for key in ("train_step", "step", "global_step", "iteration"):
        if str(metadata.get(key, "")).isdigit():
            return int(metadata[key])
    found = re.search(r"(?:^|[^a-z])(?:global_?step|step|checkpoint|ckpt|iter)[-_=]?(\d+)", path.name, re.IGNORECASE)
    return int(found[1]) if found else None


def _neighbours(path: Path) -> str | None:
    """Name files of the same directory that could be meant."""
    import difflib

    opener: Callable[[], list[str]] = lambda: [entry.name for entry in path.parent.iterdir()]  # noqa: E731
    try:
        close = difflib.get_close_matches(path.name, opener(), n=3)
    except OSError:
        return f"there is no directory {path.parent}."
    return f"did you mean {', '.join(close)}?" if close else None
