"""What a convolution can rebuild of its input: it holds the last inputs themselves, each exactly, and none older.

MF(τ) = 1 up to the last tap that is not 0, and 0 from there on. Rounding meets an input once, on its way in: what is
moved on along the window is already a number of the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ssmdiag.capacity.full_spectrum import REASONS
from ssmdiag.capacity.rounding import STATE_PRECISION
from ssmdiag.kernel.finite import last_tap
from ssmdiag.kernel.status import Status, channel_status

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.capacity.rounding import Rounding
    from ssmdiag.recurrence.modal import Recurrence


def inputs_held(convolution: Recurrence) -> tuple[Tensor, Tensor]:
    """Return how many inputs reach the output, (channel,) int64, and whether that is known."""
    assert convolution.taps is not None
    return last_tap(convolution.taps).long() + 1, channel_status(convolution) != Status.NOT_FINITE


def surviving_inputs(held: Tensor, rounding: Rounding) -> dict[str, Tensor]:
    """Return how many of the inputs held survive each format, by its name: an error of ε²/3 of what is rounded."""
    size = {name: 1.0 if name == "int8" else 1.0 + rounding.input_mean**2 for name in STATE_PRECISION}
    return {name: held / (1 + size[name] * precision**2 / 3) for name, precision in STATE_PRECISION.items()}


def window_lags(held: Tensor, context: int) -> Tensor:
    """Return lags for a curve of MF: the first ones, the powers of two, and both sides of every window's end."""
    ends = torch.cat([held, held - 1]).clamp(min=0)
    powers = 2 ** torch.arange(context.bit_length(), device=held.device)
    lags = torch.cat([held.new_zeros(1), powers, ends]).unique()
    return lags[lags < context].double()


def nothing_excluded(held: Tensor) -> dict[str, Tensor]:
    """Return zero modes left out, by reason."""
    return {reason: torch.zeros_like(held) for reason in REASONS}
