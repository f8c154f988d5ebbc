"""Effects of 16-bit and smaller formats on memory: how far rounding moves a time constant, which decays round to 1.

Bits can be lost in two places, whose effects differ by orders of magnitude. *Storing* a weight in 16 bits moves it by
up to half a unit in the last place, and the time constant by S of that (`sensitivity`): a few per mille to a few per
cent under an exponential map. *Computing the decay* λ̄ = e^−r in 16 bits rounds to exactly 1 every λ̄ with 1 − λ̄ at or
below half the spacing of numbers below 1: τ above 511 steps in bfloat16, 4,095 in float16, 3.4e7 in float32.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmdiag.recurrence.maps import find_map
from ssmdiag.stability.sensitivity import ROUNDING_DTYPES, relative_perturbation, rounding_step

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence.modal import RecurrentWeight

HALF_SPACING_BELOW_ONE = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-25}
"""Largest 1 − λ̄ that rounds to 0, by dtype; the tie goes to 1, whose last bit is even."""

ROUNDED_LIKE = {dtype: dtype for dtype in ROUNDING_DTYPES} | {
    "complex32": "float16", "float8_e4m3fnuz": "float8_e4m3fn", "float8_e5m2fnuz": "float8_e5m2",
}  # fmt: skip
"""Dtypes whose rounding is known, with the one whose numbers are spaced like theirs."""


def is_coarse(dtype: str) -> bool:
    """Whether a stored dtype has fewer bits than float32.

    >>> [is_coarse(dtype) for dtype in ("float32", "complex64", "bfloat16", "float8_e4m3fn")]
    [False, False, True, True]
    """
    return dtype.startswith(("bfloat16", "float16", "float8", "float4", "complex32"))


def rounds_to_one(rate: Tensor, dtype: str) -> Tensor:
    """Whether each decay e^−r with r > 0 becomes exactly 1 in `dtype`. Rates in nats per step, any shape.

    Raises KeyError for a dtype that is not in `HALF_SPACING_BELOW_ONE`.
    """
    return (rate > 0) & (-(-rate).expm1() <= HALF_SPACING_BELOW_ONE[dtype])


def longest_time_constant(dtype: str) -> float:
    """Return the time constant in steps at and above which a decay computed in `dtype` is exactly 1.

    >>> [int(longest_time_constant(dtype)) for dtype in ("bfloat16", "float16")]
    [511, 4095]
    """
    return -1 / math.log1p(-HALF_SPACING_BELOW_ONE[dtype])


def time_constant_error(weight: RecurrentWeight, dtype: str) -> Tensor:
    """Return the largest relative change of a time constant when its weight is rounded to `dtype`.

    Float64 in the weight's shape, infinite where the rounded weight may be on or past the stability boundary:
    S(w, β) with β half a unit in the last place of `dtype` at w; for int8, of one scale for the whole tensor.
    Raises KeyError for a dtype that is not in `ROUNDED_LIKE`.
    """
    beta = rounding_step(weight.values, ROUNDED_LIKE[dtype])
    if not weight.discrete:
        return relative_perturbation(weight.map, weight.values, beta)
    map = find_map(weight.map)
    rate = -map(weight.values).log()
    ends = [-map(weight.values + move).log() for move in (beta, -beta)]
    first, second = ((rate / end - 1).abs().where((end > 0) | end.isnan(), math.inf) for end in ends)
    return first.maximum(second)


def worst_and_median_error(weight: RecurrentWeight, dtype: str) -> tuple[float, float] | None:
    """Return the maximum and the median of `time_constant_error` over the weights where it is finite, or None.

    A 16-bit tensor has few distinct values; each is evaluated once.
    """
    import torch

    values, counts = _distinct(weight.values, ROUNDED_LIKE[dtype])
    error = time_constant_error(replace(weight, values=values), dtype)
    finite = error.isfinite()
    if not bool(finite.any()):
        return None
    error, order = error[finite].sort()
    places = counts[finite][order].cumsum(0)
    middle = torch.searchsorted(places, (places[-1:] + 1) // 2)
    return float(error[-1]), float(error[middle])


def _distinct(values: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Return values and how often each occurs; grouped where all are numbers of a 16-bit dtype."""
    import torch

    flat = values.flatten()
    if dtype in ("bfloat16", "float16"):
        half = flat.to(getattr(torch, dtype))
        if torch.equal(half.double(), flat):
            codes = torch.bincount(half.view(torch.int16).long() + 2**15, minlength=2**16)
            seen = codes.nonzero()[:, 0]
            numbers = (seen - 2**15).to(torch.int16).view(half.dtype).double()
            return numbers, codes[seen]
    return flat, torch.ones_like(flat, dtype=torch.int64)


def error_bound(weight: RecurrentWeight, dtype: str) -> float:
    """Return an upper bound on `time_constant_error`, at the cost of a maximum; infinite where none is known."""
    if weight.discrete or not weight.values.numel():
        return math.inf if weight.discrete else 0.0
    # The rounding step grows with |w|. NaN and infinity make it infinite: then each weight must be evaluated.
    step = float(rounding_step(weight.values.abs().max(), ROUNDED_LIKE[dtype]))
    return find_map(weight.map).bound(step) if math.isfinite(step) else math.inf
