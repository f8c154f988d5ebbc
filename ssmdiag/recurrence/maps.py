"""Stored weight → positive magnitude: the maps f in Re λ = −f(w) and Δ = f(w), with the properties of each.

| map | f(w) | f⁻¹(r) | abs f′/f² | sup_w S(w, β) | λ̄ in discrete form |
|---|---|---|---|---|---|
| direct | −w | −r | 1/w² | ∞ | w |
| relu | max(w, 0) | r | 1/w² | ∞ | e^−f |
| exp | e^w | log r | e^−w | e^β − 1 | e^−f |
| softplus | log(1 + e^w) | log(e^r − 1) | σ(w)/f² | e^β − 1 | e^−f = 1/(1 + e^w) |
| sigmoid | σ(w) | log r/(1 − r) | e^−w | e^β − 1 | e^−f |
| best(a, b) | 1/(aw² + b) | √((1/r − b)/a) | 2a abs w | β(β + √(β² + 4b/a))a/2b | 1 − f |
| heavy-tail | 1 + w, below 0: 1/(1 − w) | r − 1, below 1: 1 − 1/r | 1/f², below 0: 1 | β + β²/4 | e^−f |

Theory: P1 (arXiv 2311.14495) §3.3; S is its Definition 3.4 with the integral done, see `stability`. Names
are those of the `--param` options. `none`, `-logsigmoid` and those with a floor of 1e-4 are maps that
models in the wild go through; the rest are also offered to retrain with. Only tensor methods are used,
so that importing a family does not import torch.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ssmdiag.errors import MapError, meant

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-4
"""Constant that state-spaces/s4, S5 and typeseg add to a rate or use as its lower bound."""


@dataclass(frozen=True, eq=False)
class StableMap:
    """One map f from a weight to a rate or a step; calling it evaluates f.

    All functions take and return tensors of one shape, in their dtype, and are exact to rounding in
    both tails.
    """

    name: str
    formula: str
    function: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    """r → w with f(w) = r, for r within `low` … `high`; of two such w the positive one."""
    scale: Callable[[Tensor], Tensor]
    """w → |f′|/f² where f > 0 (P1, Theorem 3.6): how steeply the time constant 1/f grows with w."""
    change: Callable[[Tensor, Tensor], Tensor]
    """(w, d) → f(w)/f(w + d) − 1: the relative change of the time constant when w moves by d."""
    bound: Callable[[float], float]
    """β → g(β) ≥ S(w, β) for every w, infinite where there is none (P1, Definition 3.4)."""
    low: float = 0.0
    """Infimum of the stable values of f."""
    high: float = math.inf
    """Supremum of the values of f."""
    reaches_high: bool = False
    """Whether f(w) = `high` for some w."""
    discrete: Literal["exp(-f)", "1 - f", "w"] = "exp(-f)"
    """λ̄ as a function of w, for models that have no step."""
    linear: bool = False
    """Whether `inverse` extends, with the same sign, to magnitudes of 0 and below."""

    def __call__(self, weights: Tensor) -> Tensor:
        return self.function(weights)

    def holds(self, magnitudes: Tensor) -> Tensor:
        """Whether each positive magnitude is a value of f."""
        top = magnitudes <= self.high if self.reaches_high else magnitudes < self.high
        return (magnitudes > self.low) & top

    def eigenvalue(self, weights: Tensor, *, discrete: bool = False) -> Tensor:
        """Return λ = −f(w) per unit time, or λ̄ per step in the discrete form."""
        if not discrete:
            return -self.function(weights)
        if self.discrete == "w":
            return weights
        magnitude = self.function(weights)
        return 1 - magnitude if self.discrete == "1 - f" else (-magnitude).exp()

    def weight(self, eigenvalues: Tensor, *, discrete: bool = False) -> Tensor:
        """Return w whose `eigenvalue` this is; NaN or infinite where there is none."""
        if not discrete:
            return self.inverse(-eigenvalues)
        if self.discrete == "w":
            return eigenvalues
        return self.inverse(1 - eigenvalues if self.discrete == "1 - f" else -eigenvalues.log())


def softplus(w: Tensor) -> Tensor:
    """Return log(1 + eʷ), accurate in both tails.

    torch.nn.functional.softplus returns w itself above 20, which loses e⁻²⁰ = 2e-9 relative.
    """
    return w.logaddexp(w.new_zeros(()))


def inverse_softplus(r: Tensor) -> Tensor:
    """Return log(eʳ − 1), which neither overflows nor loses the digits of a small r."""
    return r + (-(-r).expm1()).log()


def heavy_tail(w: Tensor) -> Tensor:
    """Return 1 + w for w ≥ 0 and 1/(1 − w) below: Mamba-3's activation since June 2026."""
    return (1 + w).where(w >= 0, 1 / (1 - w.clamp(max=0)))


def _softplus_change(w: Tensor, d: Tensor) -> Tensor:
    later = softplus(w + d)
    # For small d the difference is log1p(σ(w) expm1(d)), which cancels nothing.
    near = (w.sigmoid() * d.clamp(-1, 1).expm1()).log1p()
    growth = near.where(d.abs() <= 1, later - softplus(w))
    return (-growth / later).where((w > -50) | (w + d > -50), (-d).expm1())


def _heavy_tail_change(w: Tensor, d: Tensor) -> Tensor:
    later = w + d
    above = (-d / (1 + later)).where(later >= 0, -d - w * later)
    below = (-d / (1 - w)).where(later < 0, (w * later - d) / ((1 - w) * (1 + later)))
    return above.where(w >= 0, below)


def _quotient(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Return (w, d) → f(w)/f(w + d) − 1 by subtraction, for maps whose difference cancels nothing more."""

    def change(w: Tensor, d: Tensor) -> Tensor:
        later = function(w + d)
        return (function(w) - later) / later

    return change


def _past_boundary(scale: Tensor, stable: Tensor) -> Tensor:
    """Return the scale where the mode decays, infinity where it does not."""
    return scale.where(stable | scale.isnan(), math.inf)


def best(a: float = 1.0, b: float = 0.5) -> StableMap:
    """Return f(w) = 1/(aw² + b), the map whose gradient scale is 2a|w| (P1, §3.3).

    a = 1, b = 0.5 in the paper; the authors' code trains with b = 0.1. Rates reach 1/b at w = 0, so in
    discrete form λ̄ = 1 − f alternates in sign for b < 1 and is unstable near w = 0 for b ≤ 0.5.
    Raises MapError unless a and b are positive and finite.
    """
    if not (a > 0 and b > 0 and math.isfinite(a) and math.isfinite(b)):
        raise MapError(f"best(a={a:g}, b={b:g}): f(w) = 1/(a w² + b) is no rate for every w.", expected="a > 0, b > 0")
    settings = [f"a={a!r}".removesuffix(".0")] * (a != 1) + [f"b={b!r}".removesuffix(".0")] * (b != 0.5)
    return StableMap(
        name=f"best({', '.join(settings)})" if settings else "best",
        formula=f"1/({f'{a:g} ' if a != 1 else ''}w² + {b:g})",
        function=lambda w: 1 / (a * w.square() + b),
        inverse=lambda r: ((1 / r - b) / a).sqrt(),
        scale=lambda w: 2 * a * w.abs(),
        change=lambda w, d: d * (2 * w + d) / (w.square() + b / a),
        bound=lambda beta: beta * (beta + math.sqrt(beta * beta + 4 * b / a)) * a / (2 * b),
        high=1 / b,
        reaches_high=True,
        discrete="1 - f",
    )


def _grows(beta: float) -> float:
    """Return e^β − 1, infinite where that is beyond float64."""
    return math.expm1(beta) if beta < 709 else math.inf


_ENTRIES = (
    StableMap(
        "none", "w",
        lambda w: w, lambda r: r,
        lambda w: _past_boundary(w.square().reciprocal(), w > 0),
        lambda w, d: -d / (w + d),
        lambda beta: math.inf,
        linear=True,
    ),
    StableMap(
        "direct", "-w",
        lambda w: -w, lambda r: -r,
        lambda w: _past_boundary(w.square().reciprocal(), w < 0),
        lambda w, d: -d / (w + d),
        lambda beta: math.inf,
        discrete="w",
        linear=True,
    ),
    StableMap(
        "direct, at least 1e-4", "max(-w, 1e-4)",
        lambda w: (-w).clamp(min=FLOOR), lambda r: -r,
        lambda w: w.square().reciprocal().where(w < -FLOOR, 0 * w.abs()),
        _quotient(lambda w: (-w).clamp(min=FLOOR)),
        lambda beta: beta / FLOOR,
        low=FLOOR,
        linear=True,
    ),
    StableMap(
        "exp", "exp(w)",
        lambda w: w.exp(), lambda r: r.log(),
        lambda w: (-w).exp(),
        lambda w, d: (-d).expm1() + 0 * w,
        _grows,
    ),
    StableMap(
        "softplus", "log(1 + exp(w))",
        softplus, inverse_softplus,
        lambda w: (w.sigmoid() / softplus(w) / softplus(w)).where(w > -700, (-w).exp()),
        _softplus_change,
        _grows,
    ),
    StableMap(
        "softplus+1e-4", "log(1 + exp(w)) + 1e-4",
        lambda w: softplus(w) + FLOOR, lambda r: inverse_softplus(r - FLOOR),
        lambda w: w.sigmoid() / (softplus(w) + FLOOR).square(),
        _quotient(lambda w: softplus(w) + FLOOR),
        _grows,
        low=FLOOR,
    ),
    StableMap(
        "sigmoid", "1/(1 + exp(-w))",
        lambda w: w.sigmoid(), lambda r: r.log() - (-r).log1p(),
        lambda w: (-w).exp(),
        lambda w, d: (-w).sigmoid() * (-d).expm1(),
        _grows,
        high=1.0,
    ),
    StableMap(
        "-logsigmoid", "log(1 + exp(-w))",
        lambda w: softplus(-w), lambda r: -inverse_softplus(r),
        lambda w: ((-w).sigmoid() / softplus(-w) / softplus(-w)).where(w < 700, w.exp()),
        lambda w, d: _softplus_change(-w, -d),
        _grows,
    ),
    StableMap(
        "relu", "max(w, 0)",
        lambda w: w.clamp(min=0), lambda r: r,
        # At and below 0 the rate is 0 and so is the gradient: P1 writes 1/w² times the indicator of w > 0.
        lambda w: w.square().reciprocal().where(w > 0, 0 * w.abs()),
        lambda w, d: -d / (w + d),
        lambda beta: math.inf,
        linear=True,
    ),
    StableMap(
        "relu+1e-4", "max(w, 0) + 1e-4",
        lambda w: w.clamp(min=0) + FLOOR, lambda r: r - FLOOR,
        lambda w: (w + FLOOR).square().reciprocal().where(w > 0, 0 * w.abs()),
        _quotient(lambda w: w.clamp(min=0) + FLOOR),
        lambda beta: beta / FLOOR,
        low=FLOOR,
        linear=True,
    ),
    best(),
    best(b=0.1),
    StableMap(
        "heavy-tail", "1 + w, below 0: 1/(1 - w)",
        heavy_tail, lambda r: (r - 1).where(r >= 1, 1 - 1 / r),
        lambda w: (1 + w.clamp(min=0)).square().reciprocal(),
        _heavy_tail_change,
        lambda beta: beta + beta * beta / 4,
    ),
)  # fmt: skip

MAPS: dict[str, StableMap] = {entry.name: entry for entry in _ENTRIES}
"""Every map by name; each takes and returns a tensor of the same shape."""

STABLE_MAPS = ("direct", "relu", "exp", "softplus", "sigmoid", "best", "heavy-tail")
"""Names of the maps offered to retrain with; `best` takes a and b."""


def find_map(name: str) -> StableMap:
    """Return the map of this name; `best` takes numbers: `best(b=0.1)`, `best(a=2, b=0.1)`, `best(2, 0.1)`.

    Raises MapError for any other name, and says which there are.

    >>> find_map("best(a=1, b=0.1)").name, find_map("exp").formula
    ('best(b=0.1)', 'exp(w)')
    """
    if name in MAPS:
        return MAPS[name]
    if called := re.fullmatch(r"best\((.*)\)", name.replace(" ", "")):
        parts = [part for part in called[1].split(",") if part]
        named = dict(part.split("=", 1) for part in parts if "=" in part)
        with contextlib.suppress(TypeError, ValueError):
            return best(
                *(float(part) for part in parts if "=" not in part),
                **{letter: float(number) for letter, number in named.items()},
            )
    others = ", ".join(other for other in MAPS if other not in STABLE_MAPS and not other.startswith("best"))
    raise MapError(
        f"no map is called {name!r}.",
        expected=f"one of {', '.join(STABLE_MAPS)}, best(a=…, b=…); or, as some models have it, {others}",
        instead=meant(name, STABLE_MAPS),
    )
