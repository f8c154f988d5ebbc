"""What a model is shown: batches of texts of one length, never padded.

A layer sees what stands in its input, whatever a mask says of it: padding would be measured as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssmdiag.errors import SsmdiagError

MASKS = ("attention_mask", "mask", "padding_mask")
ANSWERS = ("labels", "label_ids")
"""Entries of a batch that ask a model of transformers for its loss."""


@dataclass(frozen=True, eq=False)
class Shown:
    """One batch as the model is called with it."""

    inputs: Tensor
    """(batch, time) token ids, or (batch, time, feature)."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments by name."""
    name: str | None = None
    """Of `inputs`, where the model is called with it by name."""

    @property
    def texts(self) -> int:
        return self.inputs.shape[0]

    @property
    def length(self) -> int:
        return self.inputs.shape[1]

    def call(self, model: torch.nn.Module, device: torch.device | None, **settings: Any) -> Any:
        """Call the model with the batch on a device."""
        more = {key: _moved(value, device) for key, value in self.more.items()} | settings
        inputs = _moved(self.inputs, device)
        return model(**{self.name: inputs}, **more) if self.name else model(inputs, **more)


def shown(batches: Iterable[Any], length: int | None, left_out: list[str]) -> Iterator[Shown]:
    """Yield the batches, each cut to its first `length` steps; without a length, all have that of the first.

    Sentences on batches that are too short are added to `left_out`. Raises SsmdiagError for a batch that is padded, is
    no sequence, or has another length than the first.
    """
    for number, batch in enumerate(batches, 1):
        found = as_shown(batch, f"batch {number}")
        if length is None:
            length = found.length
        elif found.length < length:
            left_out.append(f"batch {number}: its texts have {found.length:,} steps, fewer than {length:,}")
            continue
        if found.length > length:
            found = _cut(found, length)
        yield found


def as_shown(batch: Any, where: str) -> Shown:
    """Return a tensor, (inputs, targets) or a mapping of arguments as a batch. Raises SsmdiagError."""
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
        batch = batch[0]
    if isinstance(batch, Tensor):
        return Shown(_sequence(batch, where))
    if isinstance(batch, Mapping):
        found = {str(key): value for key, value in batch.items() if key not in ANSWERS}
        for key in MASKS:
            mask = found.get(key)
            if isinstance(mask, Tensor) and not bool((mask != 0).all()):
                raise SsmdiagError(
                    f"{where} is padded: its {key} is 0 in {int((mask == 0).sum()):,} of {mask.numel():,} places.",
                    expected="texts of one length: a layer reads padding as text",
                    advice="cut all texts to one length.",
                )
        for key, value in found.items():
            if isinstance(value, Tensor) and value.ndim >= 2 and key not in MASKS:
                return Shown(_sequence(value, where), {k: v for k, v in found.items() if k != key}, key)
    raise SsmdiagError(
        f"{where} is a {type(batch).__name__}.",
        expected="a tensor (batch, time) of token ids or (batch, time, feature), or a mapping of a model's arguments",
    )


def _sequence(inputs: Tensor, where: str) -> Tensor:
    tokens = inputs.ndim == 2 and not inputs.is_floating_point()
    if not (tokens or inputs.ndim == 3) or not inputs.numel():
        raise SsmdiagError(
            f"{where} has inputs of shape {tuple(inputs.shape)}, {str(inputs.dtype).removeprefix('torch.')}.",
            expected="(batch, time) token ids, or (batch, time, feature)",
        )
    return inputs


def _cut(batch: Shown, length: int) -> Shown:
    whole = batch.length

    def part(value: Any) -> Any:
        along = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[1] == whole
        return value[:, :length] if along else value

    return Shown(part(batch.inputs), {key: part(value) for key, value in batch.more.items()}, batch.name)


def _moved(value: Any, device: torch.device | None) -> Any:
    return value.to(device) if device is not None and isinstance(value, Tensor) else value
