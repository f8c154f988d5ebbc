"""Kernels drawn at random whose decay is known by construction, for `compare_decay` to recover.

Each case carries the verdicts that would be right. `UNDETERMINED` is never wrong, and never counts as recovered.

exponential     e^−βt, three e-folds or more inside the context → exponential, β within 2 %
ring            e^−βt cos(ωt + φ), ω ≥ 2β → exponential, β within 5 %
neighbours      2–4 positive exponentials whose rates lie within 5 % → exponential, β in their range or 2 % beside it
polynomial      (1 + t/t₀)^−p, p 0.6–3, t₀ at most a hundredth of the context → polynomial, p within 0.05
truncated       (1 + t/t₀)^−p e^−βt, both factors at work in the window → truncated, p within 0.05, β within 2 %
flat            a rate of at most 0.02 nats over the whole context → flat
mixture         2–3 positive exponentials a factor 8–60 apart, energies within a factor ten → truncated at most
imitation       the sum of 4 exponentials nearest a power law over four decades → not polynomial
power sum       40 log-spaced exponentials of a power law → polynomial, p within 0.05
layer           512 squared one-mode kernels added up, Δ log-uniform over decades → truncated or polynomial
s4d-lin, -inv   Re A = −½ in every mode, random C → exponential, β within 10 % of Δ/2
s4d-real, legs, lru   many rates, random C → exponential, β within 10 % of the slowest; or truncated

Mixtures of well separated rates follow none of the laws, so "undetermined" is the answer to hope for; a truncated power
law passes because that verdict claims to describe the envelope within its stated residual and no more. The same holds
for the initialisations with many rates: they are exponential beyond their slowest time constant, and whatever stands
before it is a mixture. Where the context ends before that constant, a power law is no mistake either.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from ssmdiag.decay.decay import LAWS, DecayComparison, Law, compare_decay

FLOAT32 = 2.0**-24
"""Rounding noise of a kernel in float32, relative to its peak."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    kind: str
    context: int
    edges: Array
    mean_square: Array
    floor: float
    accepted: frozenset[Law]
    rates: tuple[float, float] | None = None
    """Range the rate of an exponential or truncated verdict must lie in."""
    exponents: tuple[float, float] | None = None
    note: dict[str, float] = field(default_factory=dict)


def log_spaced_edges(context: int, per_decade: int = 12) -> Array:
    """Return integer edges from 0 to `context`: single lags first, then `per_decade` bins per decade."""
    lags = np.geomspace(1, context, max(int(per_decade * math.log10(context)) + 1, 2))
    return np.unique(np.round(np.concatenate([[0.0], lags]))).astype(np.float64)


def bin_energy(energy: Array, edges: Array) -> Array:
    """Return the mean of `energy` (lag) over each bin."""
    index = edges.astype(int)
    return np.add.reduceat(energy[: index[-1]], index[:-1]) / np.diff(index)


def _case(
    kind: str,
    random: np.random.Generator,
    kernel: Array,
    accepted: set[Law],
    rates: tuple[float, float] | None = None,
    exponents: tuple[float, float] | None = None,
    **note: float,
) -> Case:
    noise = FLOAT32 * float(np.abs(kernel).max())
    edges = log_spaced_edges(kernel.size)
    energy = (kernel + noise * random.standard_normal(kernel.size)) ** 2
    return Case(
        kind, kernel.size, edges, bin_energy(energy, edges), noise**2, frozenset(accepted), rates, exponents, note
    )


def _context(random: np.random.Generator, low: float = 64, high: float = 1e5) -> int:
    return int(_log_uniform(random, low, high))


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(random.uniform(math.log(low), math.log(high))))


def _near(value: float, share: float) -> tuple[float, float]:
    return value * (1 - share), value * (1 + share)


def exponential(random: np.random.Generator) -> Case:
    context = _context(random)
    rate = _log_uniform(random, 3 / context, 1.0)
    return _case(
        "exponential", random, np.exp(-rate * np.arange(context)), {Law.EXPONENTIAL}, _near(rate, 0.02), rate=rate
    )


def ring(random: np.random.Generator) -> Case:
    context = _context(random)
    rate = _log_uniform(random, 3 / context, 0.5)
    frequency = _log_uniform(random, 2 * rate, math.pi) if 2 * rate < math.pi else math.pi
    lag = np.arange(context)
    kernel = np.exp(-rate * lag) * np.cos(frequency * lag + random.uniform(0, 2 * math.pi))
    return _case("ring", random, kernel, {Law.EXPONENTIAL}, _near(rate, 0.05), rate=rate, frequency=frequency)


def neighbours(random: np.random.Generator) -> Case:
    context = _context(random)
    rate = _log_uniform(random, 3 / context, 0.5) * random.uniform(0.95, 1.05, random.integers(2, 5))
    kernel = random.uniform(0.2, 1, rate.size) @ np.exp(-rate[:, None] * np.arange(context))
    return _case("neighbours", random, kernel, {Law.EXPONENTIAL}, (0.98 * float(rate.min()), 1.02 * float(rate.max())))


def polynomial(random: np.random.Generator) -> Case:
    context = _context(random, 1e3)
    exponent, offset = random.uniform(0.6, 3), _log_uniform(random, 0.5, context / 100)
    if random.random() < 0.2:
        exponent, offset = 1.1, 10.0
    kernel = (1 + np.arange(context) / offset) ** -exponent
    span = (exponent - 0.05, exponent + 0.05)
    return _case("polynomial", random, kernel, {Law.POLYNOMIAL}, None, span, exponent=exponent, offset=offset)


def truncated(random: np.random.Generator) -> Case:
    context = _context(random, 1e3)
    exponent, offset = random.uniform(0.6, 2), _log_uniform(random, 1, context / 200)
    rate = _log_uniform(random, 2 / context, 0.05 / offset)
    kernel = (1 + np.arange(context) / offset) ** -exponent * np.exp(-rate * np.arange(context))
    span = (exponent - 0.05, exponent + 0.05)
    accepted = {Law.TRUNCATED}
    return _case(
        "truncated", random, kernel, accepted, _near(rate, 0.02), span, exponent=exponent, offset=offset, rate=rate
    )


def flat(random: np.random.Generator) -> Case:
    context = _context(random)
    rate = _log_uniform(random, 1e-9, 0.02) / context
    return _case("flat", random, np.exp(-rate * np.arange(context)), {Law.FLAT}, rate=rate)


def mixture(random: np.random.Generator) -> Case:
    context = _context(random, 512)
    count = int(random.integers(2, 4))
    slowest = _log_uniform(random, 3 / context, 0.02)
    rates = slowest * np.cumprod(np.concatenate([[1.0], np.exp(random.uniform(math.log(8), math.log(60), count - 1))]))
    rates = np.minimum(rates, 2.0)
    # Equal shares of energy within a factor ten: none is a mere correction to another.
    energy = random.uniform(0.1, 1, count)
    kernel = np.sqrt(energy * 2 * rates) @ np.exp(-rates[:, None] * np.arange(context))
    accepted = {Law.TRUNCATED}
    # One mode may rule the whole window but for its first steps.
    if rates[1] > 0.5:
        accepted.add(Law.EXPONENTIAL)
    return _case("mixture", random, kernel, accepted, None, None, slowest=slowest, ratio=float(rates[1] / rates[0]))


def imitation(random: np.random.Generator) -> Case:
    """Four exponentials, least squares in log–log, of P1's target or another power law over four decades."""
    exponent, offset = (1.1, 10.0) if random.random() < 0.5 else (random.uniform(0.6, 2), random.uniform(0.5, 1.5))
    span = 10_000 * min(offset, 10)
    context = 10_000 if offset == 10 else int(span)
    kernel = sum_of_exponentials(exponent, offset, context, 4)
    accepted = {Law.TRUNCATED}
    return _case("imitation", random, kernel, accepted, None, None, exponent=exponent, offset=offset)


def power_sum(random: np.random.Generator) -> Case:
    context = _context(random, 3e3, 1e5)
    exponent, offset = random.uniform(0.8, 2.5), _log_uniform(random, 1, context / 200)
    if random.random() < 0.3:
        exponent, offset = 1.1, 10.0
    kernel = power_law_by_quadrature(exponent, offset, context, 40)
    span = (exponent - 0.05, exponent + 0.05)
    return _case("power sum", random, kernel, {Law.POLYNOMIAL}, None, span, exponent=exponent, offset=offset)


def sum_of_exponentials(exponent: float, offset: float, context: int, count: int) -> Array:
    """Return the sum of `count` exponentials nearest (1 + t/t₀)^−p in logarithms at log-spaced lags."""
    from scipy.optimize import least_squares

    lag = np.unique(np.round(np.geomspace(1, context, 60))) - 1
    target = -exponent * np.log1p(lag / offset)

    def residual(x: Array) -> Array:
        terms = x[:count, None] - np.exp(x[count:, None]) * lag
        return np.logaddexp.reduce(terms, 0) - target

    rates = np.log(np.geomspace(2 / context, 1.5 / offset, count))
    best = least_squares(residual, np.concatenate([exponent * (rates + math.log(offset)), rates]), max_nfev=200).x
    return np.exp(best[:count]) @ np.exp(-np.exp(best[count:, None]) * np.arange(context))


def power_law_by_quadrature(exponent: float, offset: float, context: int, count: int) -> Array:
    """Return (1 + t/t₀)^−p as Γ(p)⁻¹ ∫ s^(p−1) e^(−s(1 + t/t₀)) ds by the trapezium rule in log s."""
    low = -math.log(context / offset) - 8 / exponent
    points = np.linspace(low, 3.6, count)
    s = np.exp(points)
    weights = s**exponent * np.exp(-s) * (points[1] - points[0]) / math.gamma(exponent)
    return weights @ np.exp(-s[:, None] * np.arange(context) / offset)


def layer(random: np.random.Generator) -> Case:
    """A layer of 512 channels of one mode each, λ = −1, Δ log-uniform over two decades or more."""
    context = _context(random, 1e3)
    low = _log_uniform(random, 1e-4, 1e-3)
    step = np.exp(random.uniform(math.log(low), math.log(100 * low * _log_uniform(random, 1, 5)), 512))
    step = np.minimum(step, 1.0)
    gain = -np.expm1(-step) * np.abs(random.standard_normal(512))
    edges = log_spaced_edges(context)
    energy = np.zeros(edges.size - 1)
    width = np.diff(edges)
    for b in range(width.size):
        ratio = -np.expm1(-2 * step * width[b]) / (-np.expm1(-2 * step) * width[b])
        energy[b] = (gain**2 * np.exp(-2 * step * edges[b]) * ratio).sum()
    slowest = float(step.min())
    accepted = {Law.TRUNCATED, Law.POLYNOMIAL}
    return Case("layer", context, edges, energy, float(energy[0]) * FLOAT32**2, frozenset(accepted), None, None,
                {"slowest": slowest})  # fmt: skip


def _modes_kernel(log_eigenvalues: Array, weights: Array, context: int) -> Array:
    lag = np.arange(context)
    kernel = np.zeros(context)
    for ell, weight in zip(log_eigenvalues, weights, strict=True):
        kernel += 2 * (weight * np.exp(ell * lag)).real
    return kernel


def _initialisation(kind: str, random: np.random.Generator) -> Case:
    """A diagonal initialisation with B = 1 and complex normal C: exponential beyond its slowest time constant."""
    modes = int(random.choice([8, 16, 32]))
    context = _context(random, 256, 3e4)
    n = np.arange(modes)
    step = _log_uniform(random, 1e-3, 1e-1)
    if kind == "lru":
        low, high = [(0.0, 0.99), (0.9, 0.999), (0.5, 0.9)][int(random.integers(3))]
        modulus = np.sqrt(random.uniform(0, 1, modes) * (high**2 - low**2) + low**2)
        ell = np.log(modulus) + 1j * random.uniform(0, math.pi, modes)
        gain = np.sqrt(1 - modulus**2) * (random.standard_normal(modes) + 1j * random.standard_normal(modes))
    else:
        if kind == "s4d-lin":
            eigenvalues = -0.5 + 1j * math.pi * n
        elif kind == "s4d-inv":
            eigenvalues = -0.5 + 1j * (2 * modes / math.pi) * (2 * modes / (2 * n + 1) - 1)
        else:
            eigenvalues = -(n + 1) + 0j
        ell = step * eigenvalues
        gain = (random.standard_normal(modes) + 1j * random.standard_normal(modes)) * np.expm1(ell) / eigenvalues
        if kind == "s4d-real":
            gain = gain.real.astype(complex)
    kernel = _modes_kernel(ell, gain, context)
    slowest = float(-ell.real.max())
    accepted = {Law.EXPONENTIAL} if kind in ("s4d-lin", "s4d-inv") else {Law.EXPONENTIAL, Law.TRUNCATED}
    if slowest * context < 1:
        accepted.add(Law.POLYNOMIAL)
    return _case(kind, random, kernel, accepted, _near(slowest, 0.1), None, slowest=slowest, modes=modes)


def legs(random: np.random.Generator) -> Case:
    """HiPPO-LegS, discretised by the bilinear map and stepped: eigenvalues −1 … −N, far from normal."""
    size = int(random.choice([8, 16, 32]))
    context = _context(random, 256, 4e3)
    step = _log_uniform(random, 3e-3, 1e-1)
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    matrix = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    left = np.linalg.inv(np.eye(size) - step / 2 * matrix)
    discrete, state = left @ (np.eye(size) + step / 2 * matrix), left @ (step * root)
    output = random.standard_normal(size)
    kernel = np.empty(context)
    for lag in range(context):
        kernel[lag] = output @ state
        state = discrete @ state
    slowest = float(np.log1p(step / 2) - np.log1p(-step / 2))
    accepted = {Law.EXPONENTIAL, Law.TRUNCATED}
    if slowest * context < 1:
        accepted.add(Law.POLYNOMIAL)
    return _case("legs", random, kernel, accepted, _near(slowest, 0.1), None, slowest=slowest, modes=size)


def _initialiser(kind: str) -> Callable[[np.random.Generator], Case]:
    return lambda random: _initialisation(kind, random)


KINDS: dict[str, Callable[[np.random.Generator], Case]] = {
    "exponential": exponential,
    "ring": ring,
    "neighbours": neighbours,
    "polynomial": polynomial,
    "truncated": truncated,
    "flat": flat,
    "mixture": mixture,
    "imitation": imitation,
    "power sum": power_sum,
    "layer": layer,
    "s4d-lin": _initialiser("s4d-lin"),
    "s4d-inv": _initialiser("s4d-inv"),
    "s4d-real": _initialiser("s4d-real"),
    "lru": _initialiser("lru"),
    "legs": legs,
}


@dataclass(frozen=True)
class Verdict:
    case: Case
    comparison: DecayComparison

    @property
    def law(self) -> Law:
        return LAWS[int(self.comparison.law[0])]

    @property
    def right_law(self) -> bool:
        return self.law in self.case.accepted

    @property
    def right_numbers(self) -> bool:
        """Whether the parameters that the law states and the case knows agree."""
        found = self.comparison.channel(0)
        pairs = ((found.rate, self.case.rates), (found.exponent, self.case.exponents))
        if self.case.kind in ("s4d-real", "lru", "legs") and self.law is not Law.EXPONENTIAL:
            return True
        return all(span[0] <= value <= span[1] for value, span in pairs if value is not None and span is not None)


def judge(case: Case) -> Verdict:
    return Verdict(
        case,
        compare_decay(
            torch.from_numpy(case.edges).long(),
            torch.from_numpy(case.mean_square)[None],
            case.floor,
            context=case.context,
        ),
    )


def run(seed: int, each: int) -> list[Verdict]:
    """Return verdicts on `each` kernels of every kind, drawn with `seed`."""
    verdicts = []
    for position, draw in enumerate(KINDS.values()):
        random = np.random.default_rng([seed, position])
        verdicts += [judge(draw(random)) for _ in range(each)]
    return verdicts


def confusion(verdicts: list[Verdict]) -> str:
    """Return a table: kind against verdict, with right numbers, wrong numbers and wrong laws."""
    lines = [f"{'kind':12}" + "".join(f"{law.value[:9]:>11}" for law in LAWS) + f"{'wrong law':>11}{'wrong no.':>11}"]
    for kind in dict.fromkeys(verdict.case.kind for verdict in verdicts):
        mine = [verdict for verdict in verdicts if verdict.case.kind == kind]
        count = Counter(verdict.law for verdict in mine)
        wrong = sum(not v.right_law for v in mine if v.law is not Law.UNDETERMINED)
        numbers = sum(v.right_law and not v.right_numbers for v in mine)
        lines.append(f"{kind:12}" + "".join(f"{count[law]:11}" for law in LAWS) + f"{wrong:11}{numbers:11}")
    return "\n".join(lines)
