"""The laws a memory kernel may follow, averaged over bins of lags.

    log e(t) = a − p log(1 + t/t₀) − β t,     p ≥ 0, β ≥ 0

e is the rms envelope and the data are mean squares over bins of lags, so what is compared is the mean square of the
*law* over the same bin, in logarithms. Over a bin of w lags around t the exponent is close to a straight line of
slope γ = β + p s, with s the slope of log(1 + t/t₀), and the mean of an exponential over w equidistant lags is known:

    ½ log mean e² = a − p ⟨log(1 + t/t₀)⟩ − β t + h,     h = ½ log( sinh(γw) / (w sinh γ) )

Exact for an exponential whatever the width of the bin; for a power law the error is of third order in w/(t + t₀).
"""

from __future__ import annotations

import torch
from torch import Tensor


def binned_law(
    lag: Tensor,
    width: Tensor,
    exponent: Tensor,
    rate: Tensor,
    offset: Tensor,
    free: tuple[str, ...] = (),
    *,
    log_spaced: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Return ½ log of the mean square of (1 + t/t₀)^−p e^−βt over each block, and its derivatives.

    All broadcast, the parameters as (channel, 1) against (channel, block). Derivatives are by p, β and log t₀,
    those in `free`; without p among them the law is exponential. `log_spaced`: no block is wider than its
    lags allow a power law's series.
    """
    # A negligible slope over the whole window; 0 itself would divide by 0.
    least = 1e-3 / (lag[:, -1:] + 1)
    if "exponent" not in free:
        bend, by_slope = _bin_average(torch.maximum(rate, least), width)
        return bend - rate * lag, [by_slope - lag] if free else []
    # Two points one standard deviation either side of the mean average any cubic over the block exactly.
    spread = ((width * width - 1) / 12).sqrt()
    half = 0.5 / spread.clamp(min=0.1)
    inverse = 1 / offset
    above, below = (lag + spread).mul(inverse).add_(1), (lag - spread).clamp(min=0).mul(inverse).add_(1)
    log_above, log_below = above.log(), below.log()
    mean, line = (log_above + log_below).mul_(0.5), (log_above - log_below).mul_(half)
    if "rate" in free or not log_spaced:
        slope = torch.maximum(torch.addcmul(rate, exponent, line), least)
        bend, by_slope = _bin_average(slope, width)
    else:
        bend, by_slope = _gentle_average(exponent * line, width)
    law = torch.addcmul(torch.addcmul(bend, exponent, mean, value=-1), rate, lag, value=-1)
    above, below = above.reciprocal_(), below.reciprocal_()
    by_offset = (
        (above + below).mul_(-0.5).add_(1).addcmul_(by_slope, (below - above).mul_(half), value=-1).mul_(exponent)
    )
    derivatives = {"exponent": torch.addcmul(mean, by_slope, line, value=-1).neg_(), "offset": by_offset}
    if "rate" in free:
        derivatives["rate"] = by_slope - lag
    return law, [derivatives[name] for name in free]


def _bin_average(slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return h = ½ log(sinh(γw) / (w sinh γ)) and dh/dγ."""
    one = torch.expm1(-2 * slope).reciprocal_()
    wide = torch.expm1(slope * (-2 * width)).div_(width)
    bend = torch.addcmul((wide * one).log_(), slope, width - 1).mul_(0.5)
    return bend, (one - wide.reciprocal_()).add_((1 - width) * 0.5)


def _gentle_average(slope: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same by the series of log(sinh x / x), enough for γw up to 1.5: a power law over a log-spaced bin."""
    inverse = width**-2
    product = (slope * width).clamp_(max=1.5)
    squared = product * product
    second, fourth, sixth = (1 - inverse) / 12, (inverse**2 - 1) / 360, (1 - inverse**3) / 5670
    bend = torch.addcmul(fourth, squared, sixth).mul_(squared).add_(second).mul_(squared)
    by_slope = torch.addcmul(4 * fourth, squared, 6 * sixth).mul_(squared).add_(2 * second).mul_(product).mul_(width)
    return bend, by_slope
