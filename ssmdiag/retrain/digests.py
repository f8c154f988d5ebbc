"""A digest of data and weights: the SHA-256 of all their bytes, so that a run resumes only on the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssmdiag.retrain.state_file import bytes_of


def digest_of(*values: Any) -> str:
    """Return the SHA-256 of tensors, mappings, tuples and plain values, in their order."""
    digest = hashlib.sha256()
    for value in values:
        update(digest, value)
    return digest.hexdigest()


def update(digest: hashlib._Hash, value: Any) -> None:
    """Add a value to a digest: of a tensor its shape, its dtype and all of its bytes."""
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), value.dtype)).encode())
        digest.update(bytes_of(value))
    elif isinstance(value, (Mapping, tuple, list)):
        entries = list(value.items()) if isinstance(value, Mapping) else list(value)
        digest.update(f"{type(entries[0]).__name__ if entries else ''} {len(entries)}".encode())
        for entry in entries:
            update(digest, entry)
    else:
        digest.update(repr(value).encode())
