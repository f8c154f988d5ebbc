"""Five numbers of a distribution."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Quantiles:
    """Five numbers of a distribution over the finite modes of a layer."""

    min: float
    p05: float
    median: float
    p95: float
    max: float

    @classmethod
    def of(cls, values: torch.Tensor) -> Quantiles | None:
        """Return the quantiles of float64 values of any shape that are not NaN, or None if there are none."""
        return cls.of_sorted(values[~values.isnan()].sort().values)

    @classmethod
    def of_sorted(cls, ordered: torch.Tensor) -> Quantiles | None:
        """Return the quantiles (nearest rank) of ascending float64 values, or None if there are none."""
        if ordered.numel() == 0:
            return None
        ranks = (torch.tensor([0.0, 0.05, 0.5, 0.95, 1.0], dtype=torch.float64) * (ordered.numel() - 1)).round().long()
        return cls(*(float(value) for value in ordered[ranks.to(ordered.device)]))
