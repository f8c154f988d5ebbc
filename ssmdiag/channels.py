"""Some channels of a layer, or those of several layers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ssmdiag.cores import share_out
from ssmdiag.kernel.powers import is_real

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence import DenseRealisation, Recurrence


def select_channel(recurrence: Recurrence, channel: int) -> Recurrence:
    """Return one channel of a recurrence. Raises IndexError where there is none of that number."""
    if not 0 <= channel < recurrence.channels:
        raise IndexError(f"{recurrence.layer} has channels 0 to {recurrence.channels - 1}, not {channel}")
    return select_channels(recurrence, torch.tensor([channel], device=recurrence.log_eigenvalues.device))


def select_channels(recurrence: Recurrence, index: Tensor) -> Recurrence:
    """Return some channels of a recurrence, in the order of `index`; weights stay those of the whole layer."""
    if recurrence.layout == "many inputs":  # one channel, whose inputs and outputs belong together
        return recurrence
    dense = recurrence.dense
    parts: dict[str, object] = {"log_eigenvalues": recurrence.log_eigenvalues[index]}
    step = recurrence.step
    if step is not None and step.ndim == 2 and step.shape[0] == recurrence.channels:
        parts["step"] = step[index]
    if recurrence.layout == "channels":
        assert recurrence.input_matrix is not None
        assert recurrence.output_matrix is not None
        parts["input_matrix"] = recurrence.input_matrix.expand(recurrence.channels, -1)[index]
        parts["output_matrix"] = recurrence.output_matrix.expand(-1, recurrence.channels, -1)[:, index]
    if dense is not None:
        parts["dense"] = lambda: _slice_dense(dense(), index)
    return replace(recurrence, **parts)  # type: ignore[arg-type]


def sample_channels(recurrence: Recurrence, most: int) -> Recurrence:
    """Return at most that many channels, spread evenly over the order of their slowest modes, both ends included."""
    if recurrence.channels <= most:
        return recurrence
    order = recurrence.rate.amin(1).argsort()
    picks = torch.linspace(0, recurrence.channels - 1, most, dtype=torch.float64).round().long()
    return select_channels(recurrence, order[picks.to(order.device)].sort().values)


def group_alike(recurrences: Sequence[Recurrence]) -> list[list[int]]:
    """Return positions of layers whose channels can stand side by side, group by group.

    A layer with a dense state, or with many inputs on one, is a group of its own.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, layer in enumerate(recurrences):
        B, C, ell = layer.input_matrix, layer.output_matrix, layer.log_eigenvalues
        alone = layer.layout in ("dense", "many inputs") or (B is not None and B.shape[-1] != layer.modes)
        kind = (
            layer.modes, is_real(ell), ell.device, B is None, None if C is None else C.shape[0],
            layer.kernel_factor, layer.conjugate_pairs, layer.dtype,
        )  # fmt: skip
        groups.setdefault((position,) if alone else kind, []).append(position)
    return list(groups.values())


def each_group(layers: Sequence[Recurrence], work: Callable[[list[int]], None]) -> None:
    """Do the work on the positions of each group of layers alike.

    A state that has many inputs is one piece of work, which would leave the other cores idle: such layers are shared
    out between them.
    """
    groups = group_alike(layers)
    whole = [group for group in groups if layers[group[0]].layout == "many inputs"]
    for group in groups:
        if group not in whole:
            work(group)
    if whole:
        share_out(lambda k: work(whole[k]), range(len(whole)), layers[whole[0][0]].log_eigenvalues.device)


def join_channels(layers: Sequence[Recurrence]) -> Recurrence:
    """Return the channels of a group of layers as one layer's: its ℓ, B̄ and C are theirs, the rest is the first's."""
    if len(layers) == 1:
        return layers[0]
    first = layers[0]
    B = [layer.input_matrix.expand_as(layer.log_eigenvalues) for layer in layers if layer.input_matrix is not None]
    C = [layer.output_matrix.expand(-1, layer.channels, -1) for layer in layers if layer.output_matrix is not None]
    return replace(
        first,
        log_eigenvalues=torch.cat([layer.log_eigenvalues for layer in layers]),
        input_matrix=torch.cat(B) if B else None,
        output_matrix=torch.cat(C, 1) if C else None,
        step=None,
        weights=(),
    )


def _slice_dense(dense: DenseRealisation, at: Tensor) -> DenseRealisation:
    return replace(
        dense,
        state_matrix=dense.state_matrix[at],
        input_matrix=dense.input_matrix[at],
        output_matrix=dense.output_matrix[:, at],
    )
