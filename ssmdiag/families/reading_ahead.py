"""Which tensors of a checkpoint will be read: said at once, those that are not on this machine come side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ssmdiag.checkpoint.names import join
from ssmdiag.errors import LayerError
from ssmdiag.families.layer import Layer


def read_ahead(layers: Sequence[Layer], others: Iterable[str] = ()) -> None:
    """Begin to fetch what reading all of these layers of a checkpoint takes, and some other tensors.

    The first layer of each kind is read to see what of it is used: a spelling also has tensors of which only the shape
    is. On this machine nothing is done. A request for each tensor of each layer in turn would take ten times as long.
    """
    checkpoint = layers[0].checkpoint if layers else None
    if checkpoint is None or not checkpoint.is_remote:
        return
    checkpoint.prefetch(others)
    kinds: dict[tuple[object, ...], list[Layer]] = {}
    for layer in layers:
        kinds.setdefault((layer.family.name, layer.spelling.name, frozenset(layer.names)), []).append(layer)
    wanted: dict[str, None] = {}
    for first, *alike in kinds.values():
        try:
            used = [name for recurrence in first.read() for name in recurrence.tensors]
        except LayerError:
            continue  # it is read again, and reported then
        own = {name: local for local, name in first.names.items()}
        for name in used:
            inside = name.removeprefix(join(first.path, ""))
            for layer in alike:
                other = layer.names.get(own[name], "") if name in own else join(layer.path, inside)
                if other in checkpoint:
                    wanted[other] = None
    checkpoint.prefetch(wanted)
