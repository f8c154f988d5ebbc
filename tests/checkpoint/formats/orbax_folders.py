"""Orbax folders: one that orbax itself wrote, and a writer of the same layout with tensorstore for all others."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

WRITTEN = Path(__file__).with_name("orbax_step.tar.xz")
"""1000/, a step of CheckpointManager of orbax-checkpoint 0.12.8: an item `state`, a TrainState of two layers named as
lindermanlab/S5 names them after three steps of optax 0.2.8, and an item `meta` of JSON; truth.npz, its parameters."""


def unpack(folder: Path) -> Path:
    """Return the step's folder."""
    with tarfile.open(WRITTEN) as file:
        file.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 has it
        file.extractall(folder)
    return folder / "1000"


def write(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    ocdbt: bool = True,
    zarr3: bool = False,
    chunk: int | None = None,
    process: str = "",
    **said: Any,
) -> Path:
    """Write arrays, named by dotted paths of keys; `chunk` cuts the first axis."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {"driver": "file", "path": f"{folder.resolve()}/{process}"}
    for name, value in arrays.items():
        store = (
            {"driver": "ocdbt", "base": base, "path": f"{name}/"}
            if ocdbt
            else {**base, "path": f"{base['path']}{name}/"}
        )
        shape = [chunk, *value.shape[1:]] if chunk else list(value.shape)
        compressed = {"name": "zstd", "configuration": {"level": 1}}
        metadata: dict[str, Any] = (
            {
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}},
                "codecs": [{"name": "bytes"}, compressed],
            }
            if zarr3
            else {"chunks": shape, "compressor": {"id": "zstd", "level": 1}}
        )
        spec = {"driver": "zarr3" if zarr3 else "zarr", "kvstore": store, "metadata": metadata}
        opened = tensorstore.open(
            spec | {"store_data_equal_to_fill_value": True}, create=True, dtype=value.dtype, shape=value.shape
        ).result()
        opened.write(value).result()
    describe(folder, list(arrays), use_zarr3=zarr3, **said)
    return folder


def describe(folder: Path, names: list[str], **said: Any) -> None:
    """Write `_METADATA`."""
    leaves = {
        name: {
            "key_metadata": [{"key": key, "key_type": 2} for key in name.split(".")],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
        for name in names
    }
    said = {"store_array_data_equal_to_fill_value": True, "custom_metadata": None} | said
    (folder / "_METADATA").write_text(json.dumps({"tree_metadata": leaves, "use_ocdbt": True, **said}))
