"""Folders that orbax writes: `_METADATA` names the arrays, zarr describes each, tensorstore reads it, one at a time.

Seen in orbax-checkpoint 0.12.8 (https://github.com/google/orbax). A checkpoint is a folder with `_METADATA`, JSON:
under `tree_metadata` a path of keys for each leaf, and `use_zarr3`, the version of zarr. With `manifest.ocdbt` the
arrays are in one key-value store, else in folders of their own. CheckpointManager writes STEP/ITEM/, in ITEM the
checkpoint or JSON. tensorstore is an extra, `ssmdiag[jax]`, imported when a folder is opened; neither JAX nor orbax is
needed.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from ssmdiag.checkpoint.budget import MOST_CONFIG, MOST_INDEX, Allowance, parse_json, read_text, shortened
from ssmdiag.checkpoint.dtypes import DTYPE_BITS
from ssmdiag.checkpoint.formats.interface import Format, Refusal, Tensor
from ssmdiag.checkpoint.formats.jax_tree import JaxTree
from ssmdiag.checkpoint.formats.sequential import TornError
from ssmdiag.checkpoint.formats.table import Entry
from ssmdiag.checkpoint.formats.zarr_metadata import METADATA, ZarrArray, described
from ssmdiag.checkpoint.location import Location
from ssmdiag.checkpoint.names import LONGEST_NAME, MOST_ELEMENTS, MOST_NAMES
from ssmdiag.checkpoint.settings import flatten
from ssmdiag.errors import CheckpointError

LEAVES, ITEMS, MANIFEST = "_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt"
USUAL_ITEMS = ("default", "params", "state", "train_state", "model")
"""Names of the item with the weights, in the order they are tried."""
JSON_ITEM = "metadata"
"""The file of an item that is JSON."""
_UNFINISHED = re.compile(r"\.orbax-checkpoint-tmp")
MOST_FILES = 100_000
AT_ONCE = 128
"""Descriptions read together."""
MOST_UNPACKED, MOST_TIMES = 256 << 20, 20
"""Most bytes of one array, or most times what the folder has; of all together, five times as many."""
MOST_CHUNKS = 1 << 16
"""Of one array; orbax writes one for each device that holds a part of it."""
CACHE = 64 << 20


class OrbaxFolder(JaxTree):
    """One folder with `_METADATA`."""

    called = "array"
    again = "save or copy the folder again."
    broken = (TornError, EOFError, OSError, ValueError, RuntimeError, NotImplementedError, MemoryError)

    def __init__(self, folder: Path) -> None:
        self.name, self.path, self.folder = folder.name, folder, folder.resolve()
        self.notes: list[str] = []
        if _UNFINISHED.search(folder.name):
            raise self._torn("its name says that orbax has not finished it")
        self._tensorstore = _tensorstore(folder)
        size = sum(os.path.getsize(file) for file in _files(folder))
        self._most = max(MOST_UNPACKED, MOST_TIMES * size)
        self._left = Allowance(5 * self._most)
        try:
            said = parse_json(read_text(folder / LEAVES, MOST_INDEX))
            paths = dict(_paths(said))
            self.driver = "zarr3" if said.get("use_zarr3") is True else "zarr"
            # Where orbax stores every chunk, one that is missing was lost; elsewhere it is of zeros.
            self._may_miss = said.get("store_array_data_equal_to_fill_value") is not True
            limits = {"cache_pool": {"total_bytes_limit": CACHE}, "data_copy_concurrency": {"limit": 1}}
            self._context = self._tensorstore.Context(limits)
            self._store = self._key_values()
            tree = _tree(paths, self._described(list(paths)))
            self.take(tree)
        except self.broken as error:
            raise self._torn(shortened(str(error) or type(error).__name__, 200)) from error
        self.format = f"orbax, {'OCDBT' if self._is_ocdbt else 'folders'}, {self.driver}"
        if not self.entries:
            raise CheckpointError(
                f"{folder} is an orbax checkpoint without arrays of numbers.", advice="name the folder of the weights."
            )
        self.settings = {**_settings(folder), **flatten(said.get("custom_metadata") or {}), **self.settings}
        self.train_step = self._step_in_names() if self.train_step is None else self.train_step

    @property
    def _is_ocdbt(self) -> bool:
        return (self.folder / MANIFEST).is_file()

    def _torn(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is not a whole orbax checkpoint ({why}).",
            expected="what orbax.checkpoint writes, finished",
            advice="wait while it is written; save or copy it again.",
        )

    def _key_values(self) -> Any:
        base = {"driver": "file", "path": f"{self.folder}/"}
        spec = {"driver": "ocdbt", "base": base} if self._is_ocdbt else base
        return self._tensorstore.KvStore.open(spec, context=self._context).result()

    def _described(self, keys: list[str]) -> Iterator[ZarrArray]:
        """Yield each array as zarr describes it."""
        name = METADATA[self.driver]
        left = Allowance(MOST_INDEX)
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            reads = [self._store.read(f"{key}/{name}") for key in some]
            for key, read in zip(some, reads, strict=True):
                found = read.result()
                if found.state != "value":
                    raise TornError(f"{shortened(key)} is not in its store")
                if not left.take(len(found.value)):
                    raise TornError("the descriptions of its arrays are too long")
                yield described(key, found.value, self.driver)

    def prefetch(self, names: Iterable[str]) -> None:
        """Do nothing: the folder is on this machine."""

    def read(self, array: Entry) -> Tensor:
        import numpy as np
        import torch

        assert isinstance(array, ZarrArray)
        width = DTYPE_BITS[array.dtype] // 8
        size = max(prod(array.shape), array.largest) * width
        if size > self._most or array.chunks > MOST_CHUNKS:
            raise TornError(f"{size:,} bytes in {array.chunks:,} chunks, more than the folder can hold")
        if not self._left.take(size):
            raise TornError("the arrays of the folder unpack to too much, or one was read too often")
        spec = {"driver": self.driver, "fill_missing_data_reads": self._may_miss}
        place = self._store / f"{array.key}/"
        opened = self._tensorstore.open(spec, kvstore=place, context=self._context, open=True, read=True).result()
        content = np.asarray(opened.read().result(), order="C")
        if content.shape != array.shape or content.dtype.itemsize != width:
            raise TornError(f"its shape is {content.shape}, and was {array.shape}")
        flat = torch.from_numpy(content.reshape(-1).view(np.uint8))
        return flat.view(getattr(torch, array.dtype)).reshape(array.shape)

    def _step_in_names(self) -> int | None:
        """Return the step that the folder, or the one above, is called after."""
        for folder in (self.folder, self.folder.parent):
            found = re.fullmatch(r"(?:[a-zA-Z]\w*_)?(\d{1,15})", folder.name)
            if found and (folder / ITEMS).is_file():
                return int(found[1])
        return None


def _paths(said: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the key in the store of each array of `_METADATA`, and its path in the tree. Raises TornError."""
    leaves = said.get("tree_metadata") if isinstance(said, dict) else None
    if not isinstance(leaves, dict) or len(leaves) > MOST_NAMES:
        raise TornError(f"{LEAVES} is not a table of at most {MOST_NAMES:,} arrays")
    for name, leaf in leaves.items():
        try:
            path = tuple(str(part["key"]) for part in leaf["key_metadata"])
            skipped = leaf["value_metadata"].get("skip_deserialize") is True
            kind = leaf["value_metadata"].get("value_type")
        except (KeyError, TypeError, AttributeError) as error:
            raise TornError(f"{LEAVES} does not describe {shortened(name)}") from error
        key = ".".join(path)
        steps = key.split("/")
        if not path or len(key) > LONGEST_NAME or len(path) > MOST_ELEMENTS or {"", ".", ".."} & set(steps):
            raise TornError(f"{LEAVES} has an impossible name: {shortened(key)}")
        if not skipped and kind != "string" and "\0" not in key:
            yield key, path


def _tree(paths: Mapping[str, tuple[str, ...]], arrays: Iterator[ZarrArray]) -> dict[str, Any]:
    """Return the arrays as nested mappings."""
    tree: dict[str, Any] = {}
    for array in arrays:
        *above, last = paths[array.key]
        node = tree
        for element in above:
            node = node.setdefault(element, {})
            if not isinstance(node, dict):
                raise TornError(f"{shortened(array.key)} is in an array")
        if last in node:
            raise TornError(f"{shortened(array.key)} is there twice")
        node[last] = array
    return tree


def _settings(folder: Path) -> dict[str, Any]:
    """Return the settings that CheckpointManager saved beside an item, as JSON."""
    settings: dict[str, Any] = {}
    step = folder if (folder / ITEMS).is_file() else folder.parent
    if not (step / ITEMS).is_file():
        return settings
    for item in sorted(step.glob(f"*/{JSON_ITEM}"))[:16]:
        try:
            settings |= flatten(parse_json(read_text(item, MOST_CONFIG)))
        except (OSError, ValueError):
            continue
    return settings


def _files(folder: Path) -> Iterator[str]:
    count = 0
    for place, _, names in os.walk(folder):
        for name in names:
            count += 1
            if count > MOST_FILES:
                return
            yield os.path.join(place, name)


def _tensorstore(folder: Path) -> Any:
    try:
        return importlib.import_module("tensorstore")
    except ImportError as error:
        raise CheckpointError(
            f"{folder} is an orbax checkpoint, and tensorstore, which reads those, is not installed.",
            advice="pip install 'ssmdiag[jax]'",
        ) from error


def open_folder(folder: Location) -> OrbaxFolder:
    """Open a checkpoint, or a step of a CheckpointManager, whose items have folders of their own."""
    if not isinstance(folder, Path):
        raise CheckpointError(
            f"{folder} is an orbax checkpoint; those are read from this machine alone.",
            advice="download it, then inspect the copy.",
        )
    if (folder / LEAVES).is_file():
        return OrbaxFolder(folder)
    items = sorted(item.name for item in folder.iterdir() if (item / LEAVES).is_file())
    if not items:
        raise CheckpointError(
            f"{folder} is an orbax checkpoint without {LEAVES}, the list of its arrays.",
            expected="a finished checkpoint of orbax-checkpoint 0.5 or later",
            advice="wait while it is written; or restore it with the orbax that wrote it and numpy.savez("
            "'model.npz', **arrays).",
        )
    chosen = items[0] if len(items) == 1 else next((name for name in USUAL_ITEMS if name in items), None)
    if chosen is None:
        raise CheckpointError(
            f"{folder} holds {len(items)} items: {', '.join(items[:6])}.",
            expected="one of them",
            advice=f"ssmdiag inspect {folder / items[0]}",
        )
    opened = OrbaxFolder(folder / chosen)
    if others := [name for name in items if name != chosen]:
        opened.notes.append(f"the item {chosen} was read; {', '.join(others[:6])} beside it not")
    return opened


FORMAT = Format(
    name="orbax",
    open_folder=open_folder,
    owns_folder=r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt",
    refusals=(
        Refusal(
            "a TensorFlow checkpoint",
            'in TensorFlow: r = tf.train.load_checkpoint(DIR); numpy.savez("model.npz", **dict((n, r.get_tensor(n)) '
            "for n in r.get_variable_to_shape_map()))",
            folder=r"saved_model\.pb|.+\.index|.+\.data-\d{5}-of-\d{5}",
        ),
        Refusal(
            "a checkpoint of TensorFlow or of an early orbax, which holds shards of tensors",
            "restore it where it was written and numpy.savez('model.npz', **flat_params).",
            folder="checkpoint",
        ),
    ),
)
