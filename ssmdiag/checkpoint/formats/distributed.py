"""torch.distributed checkpoints (.metadata, __0_0.distcp …): a folder in which each rank wrote its chunks of tensors.

Written by torchtitan, Megatron-LM (torch_dist), NeMo 2, accelerate and Lightning with FSDP. `.metadata` is read whole;
of the files, only the slices that hold chunks of a wanted tensor. Each slice is what torch.save writes.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.budget import require_file, shortened, train_step
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.dcp_metadata import Metadata, Place, SplitTensor, read_metadata
from ssmdiag.checkpoint.formats.interface import Container, Format, Refusal, Source, Tensor
from ssmdiag.checkpoint.formats.megatron_parts import parts_by_projection
from ssmdiag.checkpoint.formats.pickled_settings import settings_of
from ssmdiag.checkpoint.formats.torch_archive import BROKEN, Storage, TensorRecord, TorchPickles, TorchZip, open_archive
from ssmdiag.checkpoint.formats.torch_file import SETTINGS_KEYS, STATE_DICT_KEYS, STEP_KEYS
from ssmdiag.checkpoint.location import Location, entries, is_listed, open_ahead, size_of, source_of
from ssmdiag.checkpoint.sources.slice import Slice
from ssmdiag.errors import CheckpointError, PartialModelError, RemoteError, UnsafePickleError
from ssmdiag.printable import first_of

METADATA = ".metadata"
BESIDE = ("common.pt", "meta.pt")
"""What Megatron-LM and Lightning save without splitting it: settings, step, groups of optimisers."""
OPTIMIZER_FOLDER = re.compile(r"optimizer(_\d+)?")
"""accelerate's folder of an optimiser, beside that of the weights."""
USUAL_OPTIMIZER = "optimizer_0"
"""The one that is looked for where folders cannot be listed."""
MODEL_FOLDER = r"pytorch_model_fsdp(_\d+)?|weights"
"""Folders that accelerate and NeMo make for the weights, in that of the checkpoint."""
WRAPPERS = ("state", "app", "checkpoint", "train_state", "training_state")
_NO_WEIGHTS = re.compile(
    r"opt|optim|optim(izer)?s?(_\d+)?|(last_)?optimizer_states?|optim(izer)?_state(s|_dict)?|chained_\d+|scaler|amp"
    r"|(lr_|opt_param_)?schedulers?|train(ing|er)?_state|data_?loader(_\d+)?|(cuda_|random_)?rng_states?|callbacks|loops"
)
"""Keys under which trainers save anything but weights."""
Read = Callable[[Storage, int, int], bytes]
MOST_ITEMS = 100_000
LARGEST_ITEM = 64 << 20
_GROUP_SETTING = re.compile(
    r"(lr|initial_lr|weight_decay|betas|eps|momentum|dampening|nesterov|amsgrad|decoupled_weight_decay|params"
    r"|param_names|param_groups|optimizer_type)"
)


class DistributedCheckpoint:
    """One folder of torch.distributed.checkpoint; with `weights` False, one of an optimiser alone."""

    def __init__(self, folder: Location, *, weights: bool = True) -> None:
        self.folder = folder
        self.name = folder.name
        self.path: Location | None = folder / METADATA
        self.notes: list[str] = []
        self._sources: dict[str, Source] = {}
        self._same: dict[bytes, Any] = {}
        self._metadata = _read(folder)
        self.size = size_of(folder / METADATA) + sum(self._metadata.ends.values())
        self.format = f"torch.distributed checkpoint, {len(self._metadata.ends)} files"
        self._parts = self._weights() if weights else {}
        self._require_files()
        self._saved_beside = {name: archive for name in BESIDE if (archive := _beside(folder / name, self.notes))}
        self.settings: Mapping[str, Any] = {}
        self.train_step: int | None = None
        for archive in self._saved_beside.values():
            content = archive.content if isinstance(archive.content, Mapping) else {}
            self.settings = self.settings or settings_of(next((content[k] for k in SETTINGS_KEYS if k in content), {}))
            self.train_step = self.train_step or next((s for k in STEP_KEYS if (s := train_step(content.get(k)))), None)
        self.train_step = self._stored_step() or self.train_step

    def names(self) -> list[str]:
        return list(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        shapes = [self._tensor(part).shape for part in self._parts[name]]
        return shapes[0] if len(shapes) == 1 else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def dtype(self, name: str) -> str:
        return self._tensor(self._parts[name][0]).dtype

    def prefetch(self, names: Iterable[str]) -> None:
        parts = (part for name in names for part in self._parts[name])
        self._fetch(chunk.place for part in parts for chunk in self._tensor(part).chunks)

    def load(self, name: str) -> Tensor:
        import torch

        values = [self._load(part) for part in self._parts[name]]
        return values[0] if len(values) == 1 else torch.cat(values)

    def training_states(self, notes: list[str]) -> Iterator[tuple[Mapping[str, Any], Read]]:
        """Yield what was saved besides weights, here and in accelerate's folder of the optimiser, and what reads it."""
        yield self._training_state(), self._bytes
        for folder in self._optimizers_beside():
            try:
                other = DistributedCheckpoint(folder, weights=False)
            except UnsafePickleError:
                raise
            except (CheckpointError, OSError) as error:
                notes.append(f"the state of the optimiser was not read: {getattr(error, 'seen', error)}")
            else:
                yield other._training_state(), other._bytes

    def _optimizers_beside(self) -> list[Location]:
        folder = self.folder.absolute()
        if not re.fullmatch(MODEL_FOLDER, folder.name):
            return []
        if not is_listed(folder):
            usual = folder.parent / USUAL_OPTIMIZER
            return [usual] if (usual / METADATA).is_file() else []
        return [beside for beside in entries(folder.parent) if OPTIMIZER_FOLDER.fullmatch(beside.name)]

    def _training_state(self) -> Mapping[str, Any]:
        """Return what was saved besides weights: nested, as the trainer had it, tensors as records without values."""
        state: dict[str, Any] = {name: archive.content for name, archive in self._saved_beside.items()}
        kept = {part for parts in self._parts.values() for part in parts}
        others = (name for name in (*self._metadata.tensors, *self._metadata.items) if name not in kept)
        paths = {name: self._path(name) for name in itertools.islice(others, MOST_ITEMS)}
        settings = {
            name: self._metadata.items[name]
            for name, path in paths.items()
            if name in self._metadata.items and _GROUP_SETTING.fullmatch(str(path[-1]).rpartition(".")[2])
        }
        self._fetch(place for place in settings.values() if place.length <= LARGEST_ITEM)
        for name, path in paths.items():
            if name in self._metadata.tensors:
                _put(state, path, self._record(name))
            elif name in settings:
                _put(state, path, self._item(name))
        return _as_lists(state)

    def _bytes(self, storage: Storage, start: int, length: int) -> bytes:
        """Return bytes of a tensor of the training state."""
        import torch

        try:
            values = self._load(storage.key).contiguous().flatten()
        except (UnsafePickleError, RemoteError):
            raise
        except CheckpointError as error:  # an optimiser that cannot be read leaves the weights readable
            raise EOFError(error.seen) from error
        return bytes(values.view(torch.uint8)[start : start + length].tolist())

    # --- what is a weight -------------------------------------------------------------------------

    def _path(self, name: str) -> tuple[Any, ...]:
        return self._metadata.paths.get(name) or (name,)

    def _weights(self) -> dict[str, list[str]]:
        """Return the name of each of the model's tensors, and those of its parts in the files."""
        keys = {name: _key_of(self._path(name)) for name in self._metadata.tensors}
        used = next((key for key in STATE_DICT_KEYS if any(found[0] == key for found in keys.values())), "")
        named: dict[str, str] = {}
        left_out: dict[str, None] = {}
        unreadable: list[str] = []
        for name, (key, inner) in keys.items():
            if key is None or key != used:
                left_out[str(self._path(name)[0]).partition(".")[0]] = None
            elif self._metadata.tensors[name].dtype not in DTYPE_BITS:
                unreadable.append(name)
            else:
                named[inner] = name
        if not named:
            some = f": {first_of(list(left_out))}" if left_out else ""
            raise CheckpointError(
                f"{self.folder} is a torch.distributed checkpoint without weights{some}.",
                expected="a model's tensors, beside or without the state of its optimiser",
                advice="inspect the folder beside it that holds the model, such as pytorch_model_fsdp_0."
                if OPTIMIZER_FOLDER.fullmatch(self.name)
                else "save the model's state dict with torch.distributed.checkpoint.save({'model': …}).",
            )
        others = [key for key in left_out if not _NO_WEIGHTS.fullmatch(key) and key not in WRAPPERS]
        if others:
            self.notes.append(f"the weights under {used!r} were read; tensors under {first_of(others)} were not")
        if unreadable:
            self.notes.append(f"{len(unreadable):,} tensors of unknown types were left out: {first_of(unreadable)}")
        projections = parts_by_projection(named)
        joined = {part: whole for whole, parts in projections.items() if self._fit(parts, named) for part in parts}
        weights: dict[str, list[str]] = {}
        for inner, name in named.items():
            whole = joined.get(inner, inner)
            weights[whole] = [named[part] for part in projections[whole]] if inner in joined else [name]
        return weights

    def _fit(self, parts: list[str], named: Mapping[str, str]) -> bool:
        tensors = [self._metadata.tensors[named[part]] for part in parts]
        alike = {(tensor.shape[1:], tensor.dtype) for tensor in tensors if tensor.shape}
        return len(alike) == 1 and all(tensor.shape for tensor in tensors)

    def _require_files(self) -> None:
        """Raise PartialModelError where a file is missing or, on this machine, too short.

        Far away the sizes would take a request each: that a file is too short is seen when it is read; that one is
        missing too, where files cannot be listed.
        """
        needed: dict[str, int] = {}
        for parts in self._parts.values():
            for part in parts:
                for chunk in self._tensor(part).chunks:
                    place = chunk.place
                    needed[place.file] = max(needed.get(place.file, 0), place.start + place.length)
        sizes = self._sizes(needed)
        faults = [f"{file} is missing" for file in sorted(needed) if file not in sizes]
        faults += [
            f"{file} has {sizes[file]:,} of {end:,} bytes"
            for file, end in sorted(needed.items())
            if sizes.get(file, end) < end
        ]
        if faults:
            raise PartialModelError(
                f"{self.folder} holds a part of a model: files that .metadata names are missing or too short.",
                details=[*faults[:20], *([f"{len(faults) - 20:,} more faults"] if len(faults) > 20 else [])],
                expected=f"{len(needed):,} files, each whole",
                advice="copy or download the folder again.",
            )

    def _sizes(self, needed: Mapping[str, int]) -> Mapping[str, int]:
        """Return the sizes of those of the needed files that are there, as far as they are known; else as needed."""
        if not isinstance(self.folder, Path):
            present = {entry.name for entry in self.folder.iterdir()} if is_listed(self.folder) else needed
            return {file: end for file, end in needed.items() if file in present}
        sizes: dict[str, int] = {}
        for file in needed:
            with contextlib.suppress(OSError):
                sizes[file] = size_of(self.folder / file)
        return sizes

    # --- values -----------------------------------------------------------------------------------

    def _tensor(self, stored: str) -> SplitTensor:
        return self._metadata.tensors[stored]

    def _record(self, stored: str) -> TensorRecord:
        tensor = self._tensor(stored)
        strides = tuple(prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape)))
        return TensorRecord(Storage(tensor.dtype, prod(tensor.shape), stored), 0, tensor.shape, strides, tensor.dtype)

    def _load(self, stored: str) -> Tensor:
        """Return one stored tensor, its chunks put together."""
        import torch

        tensor = self._tensor(stored)
        if len(tensor.chunks) == 1:
            return self._values(stored, tensor.chunks[0].place, tensor.chunks[0].sizes).reshape(tensor.shape)
        whole = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
        filled = torch.zeros(tensor.shape, dtype=torch.bool)
        for chunk in tensor.chunks:
            block = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
            if filled[block].any():
                raise self._broken(stored, f"two chunks hold the values at {list(chunk.offsets)}, and others none")
            whole[block] = self._values(stored, chunk.place, chunk.sizes)
            filled[block] = True
        return whole  # as many values as chunks have, none twice: all are there

    def _values(self, stored: str, place: Place, sizes: tuple[int, ...]) -> Tensor:
        content = self._content(stored, place)
        dtype = self._tensor(stored).dtype
        if not isinstance(content, TensorRecord) or content.dtype != dtype or prod(content.shape) != prod(sizes):
            seen = f"{content.dtype} {list(content.shape)}" if isinstance(content, TensorRecord) else "no tensor"
            raise self._broken(stored, f"{place.file} holds {seen}, .metadata says {dtype} {list(sizes)}")
        try:
            return content.load(self._archive.read).reshape(sizes)
        except (*BROKEN, OSError) as error:
            raise self._broken(stored, str(error) or type(error).__name__) from error

    def _content(self, stored: str, place: Place) -> Any:
        try:
            source = self._source(place.file)
            if source.size < place.start + place.length:
                raise EOFError(f"{place.file} ends before byte {place.start + place.length:,}")
            part = Slice(source, place.start, place.length, place.file)
            part.prefetch([(0, part.size)])
            self._archive = open_archive(part)
        except (UnsafePickleError, RemoteError):
            raise
        except (CheckpointError, EOFError, OSError) as error:
            raise self._broken(stored, getattr(error, "seen", str(error))) from error
        return self._archive.content

    def _source(self, file: str) -> Source:
        if file not in self._sources:
            self._sources[file] = source_of(self.folder / file)
        return self._sources[file]

    def _fetch(self, places: Iterable[Place]) -> None:
        """Begin to fetch what is far away: of each file the parts that are wanted, those close together as one."""
        if isinstance(self.folder, Path):
            return
        wanted: dict[str, list[tuple[int, int]]] = {}
        for place in places:
            wanted.setdefault(place.file, []).append((place.start, place.length))
        open_ahead([self.folder / file for file in wanted if file not in self._sources])
        for file, ranges in wanted.items():
            self._source(file).prefetch(ranges)

    def _broken(self, stored: str, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: tensor {shortened(stored)} cannot be read ({shortened(why, 300)}).",
            advice="copy or save the folder again.",
        )

    def _item(self, name: str) -> Any:
        """Return one item that is no tensor, as plain data; None where it cannot be read."""
        place = self._metadata.items[name]
        if place.length > LARGEST_ITEM:
            return None
        try:
            raw = bytes(self._source(place.file).read(place.start, place.length))
        except (EOFError, OSError):
            return None
        if raw not in self._same:  # a learning rate is saved once for each parameter
            try:
                self._same[raw] = self._content(name, place)
            except (UnsafePickleError, RemoteError):
                raise
            except CheckpointError:
                self._same[raw] = None
        return self._same[raw]

    def _number(self, name: str) -> int | None:
        """Return the value of a tensor of one number; None where it cannot be read."""
        try:
            return int(self._load(name).item())
        except (UnsafePickleError, RemoteError):
            raise
        except CheckpointError:
            return None

    def _stored_step(self) -> int | None:
        """Return the step that the trainer saved."""
        for name in (*self._metadata.items, *self._metadata.tensors):
            path = self._path(name)
            elements = ".".join(map(str, path)).split(".")
            if elements[-1] not in STEP_KEYS or not (len(elements) == 1 or elements[-2] in WRAPPERS):
                continue
            if name in self._metadata.items:
                value = self._item(name)
            else:
                tensor = self._tensor(name)
                value = self._number(name) if tensor.shape in ((), (1,)) and tensor.dtype.startswith("int") else None
            if (step := train_step(value)) is not None:
                return step
        return None


def _key_of(path: tuple[Any, ...]) -> tuple[str | None, str]:
    """Return the key under which a trainer put the model's weights, "" without one, and a tensor's name below it.

    None for a tensor that is no weight.
    """
    keys = [str(key) for key in path]
    nested = len(keys) > 1
    elements = keys if nested else keys[0].split(".")
    if nested and len(keys) > 2 and keys[0] in WRAPPERS and keys[1] in STATE_DICT_KEYS:
        keys = keys[1:]
    elif elements[0] in WRAPPERS and len(elements) > 1 and _NO_WEIGHTS.fullmatch(elements[1]):
        return None, ""
    if _NO_WEIGHTS.fullmatch(elements[0]):
        return None, ""
    if len(keys) > 1 and keys[0] in STATE_DICT_KEYS:
        return keys[0], ".".join(keys[1:])
    return "", ".".join(keys)


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            return
        tree = below
    tree[path[-1]] = value


def _as_lists(tree: Any) -> Any:
    """Return a tree with lists in place of the mappings whose keys are positions."""
    if not isinstance(tree, dict):
        return tree
    items = {key: _as_lists(value) for key, value in tree.items()}
    return list(items.values()) if items and all(type(key) is int for key in items) else items


def _read(folder: Location) -> Metadata:
    present = {entry.name for entry in folder.iterdir()} if is_listed(folder) else {METADATA}
    if METADATA in present:
        require_file(folder / METADATA)
        try:
            return read_metadata(source_of(folder / METADATA))
        except EOFError as error:
            raise CheckpointError(
                f"{folder / METADATA} cannot be read ({error}).", advice="wait until the folder is written."
            ) from error
    if apart := sorted(name for name in present if re.fullmatch(r"__\d+\.metadata", name)):
        raise CheckpointError(
            f"{folder} is a torch.distributed checkpoint of which each rank wrote its own metadata: {first_of(apart)}.",
            expected=METADATA,
            advice="save it with use_collectives=True, or load it with torch and save the whole.",
        )
    raise PartialModelError(
        f"{folder} is a torch.distributed checkpoint without its {METADATA}: it is still being written, or the save "
        "was interrupted.",
        expected=f"{METADATA}, which torch renames into place last",
        advice="wait for it, or inspect an earlier checkpoint.",
    )


def _beside(path: Location, notes: list[str]) -> TorchZip | TorchPickles | None:
    if not path.is_file():
        return None
    try:
        return open_archive(source_of(path))
    except (UnsafePickleError, RemoteError):
        raise
    except (CheckpointError, EOFError, OSError) as error:
        notes.append(f"{path.name} was not read: {getattr(error, 'seen', error)}")
        return None


def _open(folder: Location) -> Container:
    return DistributedCheckpoint(folder)


FORMAT = Format(
    name="distributed",
    open_folder=_open,
    refusals=(
        Refusal(
            "what one rank wrote of a torch.distributed checkpoint",
            "ssmdiag inspect {folder}",
            name=r"\.distcp$",
            partial=True,
        ),
        Refusal(
            "the table of contents of a torch.distributed checkpoint, which holds no values",
            "ssmdiag inspect {folder}",
            name=r"^(__\d+)?\.metadata$",
            partial=True,
        ),
    ),
    owns_folder=r"(__\d+)?\.metadata|__\d+_\d+\.distcp",
    inner_folder=MODEL_FOLDER,
)
