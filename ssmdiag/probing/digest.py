"""A digest of a model's recurrent weights: the same from its file and from the live module that was made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ssmdiag.families.layer import Layer
    from ssmdiag.recurrence.modal import RecurrentWeight

DTYPES = ("bfloat16", "float16", "float32", "float64")
"""Dtypes that weights are compared in, narrowest first."""


@dataclass(frozen=True)
class RecurrenceDigest:
    """What identifies the recurrence of a model, whatever its tensors are called and its file is packed in."""

    sha256: str
    """Of the values of all recurrent weights in the order of the layers, cast to `dtype`, as little-endian float64."""
    dtype: str
    """The narrowest dtype among the weights; those of the other model are cast to it before they are compared."""


def digest_recurrence(layers: Sequence[Layer], dtype: str | None = None) -> RecurrenceDigest | None:
    """Return the digest of the layers' rates and steps, None where there are none.

    `dtype`: what the weights are cast to; by default the narrowest of their own. Raises LayerError where a layer cannot
    be read, ValueError for a dtype that is none of `DTYPES`.
    """
    weights: list[RecurrentWeight] = []
    for layer in layers:
        for recurrence in layer.read():
            weights += [weight for weight in recurrence.weights if all(weight is not known for known in weights)]
    if not weights:
        return None
    if dtype is None:
        own = {weight.dtype for weight in weights}
        dtype = next((name for name in DTYPES if name in own), DTYPES[-1])
    if dtype not in DTYPES:
        raise ValueError(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    found = hashlib.sha256()
    for weight in weights:
        values = torch.view_as_real(weight.values) if weight.values.is_complex() else weight.values
        cast = values.detach().cpu().to(getattr(torch, dtype)).double().contiguous()
        found.update(f"{weight.role} {cast.numel()};".encode())
        found.update(cast.numpy().astype("<f8").tobytes())
    return RecurrenceDigest(found.hexdigest(), dtype)
