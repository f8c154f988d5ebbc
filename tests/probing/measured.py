"""Clocks whose answers are known, and what is measured of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmdiag.probing.retention import Retention, RetentionMeter
from ssmdiag.recurrence.clock import Clock


def measured(*steps: Tensor, rate: Tensor | list[list[float]], channels: int = 64, positions: int = 128) -> Retention:
    """Return what is measured of batches of steps, (batch, time, channel) each."""
    meter = RetentionMeter("layer", channels=channels, positions=positions)
    for step in steps:
        meter.add(Clock(step, torch.as_tensor(rate, dtype=torch.float64)))
    return meter.result()


def drawn(batch: int, time: int, channels: int, modes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random steps, most of them small, and rates."""
    draw = torch.Generator().manual_seed(seed)
    step = torch.rand(batch, time, channels, generator=draw, dtype=torch.float64) ** 4
    return step, torch.rand(channels, modes, generator=draw, dtype=torch.float64) + 0.01
