"""A kernel's envelope in blocks of lags: what the decay laws are fitted to."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

LINE = 8
"""Float64 numbers in a cache line."""


@dataclass(frozen=True)
class Profile:
    """Blocks of neighbouring lags and their energy; a block of weight 0 is outside the window."""

    lag: Tensor
    """Mean lag of the block, steps: (channel, block), or (1, block) where all channels share their blocks."""
    width: Tensor
    """Lags in the block, shaped as `lag`."""
    log_rms: Tensor
    """½ log of the mean square, (channel, block); 0 outside the window."""
    root_weight: Tensor
    """Square roots of weights that add up to 1, as many bins as were pooled into the block, (channel, block)."""
    last: Tensor
    """Last lag of the window, (channel,)."""
    pooled: bool
    """Whether each channel has blocks of its own, pooled from several bins."""
    offset_share: float
    """t₀ is at most the last lag divided by this."""

    @property
    def blocks(self) -> Tensor:
        """Blocks inside the window, (channel,)."""
        return (self.root_weight > 0).sum(1)

    def at(self, channels: Tensor) -> Profile:
        """Return the profile of some channels, chosen by a mask or by their numbers."""
        own = self.pooled
        return Profile(
            lag=self.lag[channels] if own else self.lag,
            width=self.width[channels] if own else self.width,
            log_rms=self.log_rms[channels],
            root_weight=self.root_weight[channels],
            last=self.last[channels],
            pooled=own,
            offset_share=self.offset_share,
        )

    def cut(self, blocks: int) -> Profile:
        """Return the profile without the blocks from `blocks` on.

        Blocks of weight 0 pad it to whole cache lines: the last bits of a product depend on the alignment of its
        rows.
        """
        fill = -min(blocks, self.log_rms.shape[1]) % LINE
        lag, width, log_rms, root_weight = (
            values[:, :blocks] for values in (self.lag, self.width, self.log_rms, self.root_weight)
        )
        blank = log_rms.new_zeros(len(log_rms), fill)
        return replace(
            self,
            lag=torch.cat([lag, lag[:, -1:].expand(-1, fill)], 1),
            width=torch.cat([width, width[:, -1:].expand(-1, fill)], 1),
            log_rms=torch.cat([log_rms, blank], 1),
            root_weight=torch.cat([root_weight, blank], 1),
        )


def pool_rising(mean_square: Tensor, floor: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean square, floor, lags and bins of the blocks of the best non-rising fit to the energy.

    Neighbouring bins that rise are pooled until none does (isotonic regression): energy is conserved, an oscillation's
    notches join the crest that follows them, and a decaying kernel is left as it is. Blocks beyond a channel's last
    have width 1 and energy 0.
    """
    channels, count = mean_square.shape
    block = torch.arange(count, device=width.device).expand(channels, count).clone()
    active = torch.arange(channels, device=width.device)
    energy, lags = mean_square * width, width.expand(channels, count)
    while True:
        mean = energy / lags.clamp(min=1)
        falls = torch.ones_like(mean, dtype=torch.bool)
        falls[:, 1:] = mean[:, 1:] <= mean[:, :-1] * (1 + 1e-9)
        again = ~falls.all(1)
        active, falls, energy, lags = active[again], falls[again], energy[again], lags[again]
        if not active.numel():
            break
        moved = falls.cumsum(1) - 1
        # Columns that are empty in every channel by now are dropped.
        columns = int((moved * (lags > 0)).max()) + 1
        moved = moved.clamp(max=columns - 1)
        block[active] = moved.gather(1, block[active])
        energy = energy.new_zeros(len(energy), columns).scatter_add_(1, moved, energy)
        lags = lags.new_zeros(len(lags), columns).scatter_add_(1, moved, lags)
    blank = torch.zeros_like(mean_square)
    wide = blank.scatter_add(1, block, width.expand(channels, count)).clamp(min=1)
    energy, noise = (blank.scatter_add(1, block, values * width) for values in (mean_square, floor))
    return energy / wide, noise / wide, wide, blank.scatter_add(1, block, torch.ones_like(blank))
