"""Some channels of a layer, and work on one layer after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ssmdiag.cores import Result, share_out
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence


def select_channel(recurrence: Recurrence, channel: int) -> Recurrence:
    """Return one channel of a recurrence. Raises IndexError where it has no such channel."""
    if not 0 <= channel < recurrence.channels:
        raise IndexError(f"{module_name(recurrence.layer)} has channels 0 to {recurrence.channels - 1}, not {channel}")
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
        B, C = recurrence.matrices
        parts["input_matrix"] = B.expand(recurrence.channels, -1)[index]
        parts["output_matrix"] = C.expand(-1, recurrence.channels, -1)[:, index]
    if recurrence.taps is not None:
        parts["taps"] = recurrence.taps[:, index]
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


def each_layer(layers: Sequence[Recurrence], work: Callable[[int], Result]) -> list[Result]:
    """Return the result of the work on each layer's position, done one by one.

    In one batch, channels would change each other's last bits.

    A layer with many inputs on one state is one piece of work and would leave the other cores idle, so such layers are
    divided between cores.
    """
    whole = [position for position, layer in enumerate(layers) if layer.layout == "many inputs"]
    found = {position: work(position) for position in range(len(layers)) if position not in whole}
    if whole:
        found |= zip(whole, share_out(work, whole, layers[whole[0]].log_eigenvalues.device), strict=True)
    return [found[position] for position in range(len(layers))]


def _slice_dense(dense: DenseRealisation, at: Tensor) -> DenseRealisation:
    return replace(
        dense,
        state_matrix=dense.state_matrix[at],
        input_matrix=dense.input_matrix[at],
        output_matrix=dense.output_matrix[:, at],
    )
