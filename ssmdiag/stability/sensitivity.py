"""How far a change of the stored weight moves a mode's memory: gradient scale, perturbation, rounding step.

P1 (arXiv 2311.14495) calls λ = f(w) a stable reparameterisation when a continuous g with g(0) = 0 has

    sup_w |f(w)| sup_{|w̃ − w| ≤ β} ∫₀^∞ |e^{f(w̃)t} − e^{f(w)t}| dt ≤ g(β)                 (Definition 3.4)

One exponential dominates the other, so the integral is |1/f(w̃) − 1/f(w)| and the left side is sup_w S with

    S(w, β) = sup_{|w̃ − w| ≤ β} |f(w)/f(w̃) − 1|

the relative change of a mode's memory when its weight moves by β. In discrete form the sum
Σ_k |λ̃^k − λ̄^k| ≤ |λ̃ − λ̄|/((1 − |λ̃|)(1 − |λ̄|)), with equality for equal signs, gives
S = sup |λ̃ − λ̄|/(1 − |λ̃|).

A weight that gives the step Δ = f(w) enters the rate as a factor, so its S is the same. Every function
takes names of `maps.MAPS` or `best(a=…, b=…)` and weights of any shape, and computes in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ssmdiag.recurrence.maps import StableMap, find_map

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING_DTYPES = ("bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2", "int8")
"""Dtypes that `rounding_step` accepts, by torch name."""

_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "float8_e4m3": "float8_e4m3fn"}


def gradient_scale(name: str, values: Tensor, *, discrete: bool = False) -> Tensor:
    """Return |f′|/f² at each weight, or |f′|/(1 − |f|)² in discrete form (P1, Theorem 3.6), float64.

    It bounds how fast the loss changes with the weight, up to a factor: it is the steepness of the time constant
    1/f(w). Infinite on and past the stability boundary; 0 where the map is flat there, as relu is.
    """
    map, w = find_map(name), values.double()
    if not discrete:
        return map.scale(w)
    if map.discrete == "w":
        margin = 1 - w.abs()
        return margin.square().reciprocal().where((margin > 0) | w.isnan(), math.inf)
    f = map(w)
    if map.discrete == "1 - f":
        margin = f.minimum(2 - f)
        return (map.scale(w) * (f / margin).square()).where((margin > 0) | w.isnan(), math.inf)
    # λ̄ = e^{−f}: |f′| e^{−f}/(1 − e^{−f})² is the continuous scale times ((f/2)/sinh(f/2))².
    half = f.clamp(max=1400) / 2
    return map.scale(w) * (half / half.sinh()).square().where(half > 0, 1.0)


def relative_perturbation(name: str, values: Tensor, beta: Tensor | float, *, discrete: bool = False) -> Tensor:
    """Return S(w, β): the largest relative change of a mode's memory when its weight moves by up to β.

    `values` are weights of any shape, `beta` is broadcastable to them, ≥ 0. Infinite where some weight
    within β is on or past the stability boundary; NaN where the weight or β is NaN. Float64.
    """
    import torch

    map, w = find_map(name), values.double()
    beta = torch.as_tensor(beta, dtype=torch.float64, device=w.device)
    reach = beta.where(beta < math.inf, 0.0)
    # Every map is monotone on each side of 0, so the supremum is at an end, or at 0 if that is within β.
    moves = (reach, -reach, (-w).maximum(-reach).minimum(reach))
    measure = _discrete_change if discrete else _continuous_change
    worst = torch.stack([measure(map, *torch.broadcast_tensors(w, move)) for move in moves]).amax(0)
    return worst.where((beta < math.inf) | worst.isnan() | beta.isnan(), math.inf) + 0 * beta.where(beta.isnan(), 0.0)


def stability_bound(name: str, beta: float, *, discrete: bool = False) -> float:
    """Return g(β) of P1's Definition 3.4, a bound on the relative change of any weight's memory; infinite: not stable.

    It is sup_w S(w, β) itself for every map of `maps.STABLE_MAPS` in continuous form, and an upper bound in
    discrete form, where (1 − e^{−f})/f falls with f and so the memory moves less.

    >>> round(stability_bound("best", 0.1), 4), stability_bound("direct", 0.1)
    (0.1518, inf)
    """
    map = find_map(name)
    bound = map.bound(beta) if beta > 0 else 0.0
    if discrete and map.discrete == "1 - f":
        # min(f, 2 − f) ≥ f (2/high − 1) for f ≤ high: modes that alternate in sign are nearer the boundary.
        share = min(1.0, 2 / map.high - 1)
        return bound / share if share > 0 else math.inf
    return bound


def rounding_step(values: Tensor, dtype: str) -> Tensor:
    """Return half a unit in the last place of `dtype` at each value: how far a cast may move it. Float64.

    `dtype` is one of `ROUNDING_DTYPES`; for int8 it is half of max|value|/127, one scale for the whole
    tensor, symmetric. Infinite where the value overflows, whether the cast saturates or not. Below the
    normal numbers the step stays that of the subnormal ones, which is at least |value| where the value
    rounds to 0. Raises ValueError for another dtype.
    """
    import torch

    name = _SHORT.get(dtype, dtype)
    if name not in ROUNDING_DTYPES:
        raise ValueError(f"no rounding step for {dtype!r}; expected one of {', '.join(ROUNDING_DTYPES)}")
    w = values.double()
    if name == "int8":
        finite = w[w.isfinite()].abs()
        largest = finite.max() if finite.numel() else w.new_zeros(())
        return (largest / 254 + 0 * w).where(w.isfinite() | w.isnan(), math.inf)
    info = torch.finfo(getattr(torch, name))
    smallest = round(math.log2(info.tiny))
    exponent = (torch.frexp(w).exponent - 1).clamp(min=smallest).where(w != 0, smallest)
    step = torch.ldexp(torch.full_like(w, info.eps / 2), exponent).where(~w.isnan(), w)
    top = info.max + info.eps / 2 * 2.0 ** math.floor(math.log2(info.max))
    # Halfway rounds to even, which is down in e4m3fn alone: its all-ones pattern is NaN.
    fits = w.abs() <= top if name == "float8_e4m3fn" else w.abs() < top
    return step.where(fits | w.isnan(), math.inf)


def _continuous_change(map: StableMap, w: Tensor, move: Tensor) -> Tensor:
    stable = (map(w) > 0) & (map(w + move) > 0) | (w + move).isnan()
    if map.low == 0 and map.bound(1.0) < math.inf:
        # f > 0 everywhere; a zero is the underflow of a tiny rate, whose memory still changes by what it should.
        stable = stable | True
    return map.change(w, move).abs().where(stable, math.inf)


def _discrete_change(map: StableMap, w: Tensor, move: Tensor) -> Tensor:
    later = w + move
    if map.discrete == "w":
        margin = 1 - later.abs()
        return (move.abs() / margin).where((margin > 0) & (w.abs() < 1) | later.isnan(), math.inf)
    f, change = map(later), _continuous_change(map, w, move)
    if map.discrete == "1 - f":
        margin = f.minimum(2 - f)
        return (change * f / margin).where((margin > 0) & (map(w) < 2) | later.isnan(), math.inf)
    # (e^{−f̃} − e^{−f})/(1 − e^{−f̃}) with f − f̃ = change · f̃; far from the boundary 1 − e^{−f̃} is 1.
    near = ((-map.change(w, move) * f).expm1() / f.expm1()).abs().where(f > 1e-300, change)
    exact = near.where(f < 40, ((-f).exp() - (-map(w)).exp()).abs())
    return exact.where((change < math.inf) | change.isnan(), math.inf)
