"""Maps and their stability against sixty digits, brute force and torch's own casts."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch

from ssmdiag import find_map, gradient_scale, relative_perturbation, rounding_step, stability_bound
from ssmdiag.errors import MapError
from ssmdiag.recurrence.maps import MAPS, STABLE_MAPS, best
from ssmdiag.stability.sensitivity import ROUNDING_DTYPES

EPS = torch.finfo(torch.float64).eps
FLOOR = mpmath.mpf(1e-4)
NAMES = (*MAPS, "best(a=2, b=1.5)")

FORMULAS: dict[str, Callable] = {
    "none": lambda w: w,
    "direct": lambda w: -w,
    "direct, at least 1e-4": lambda w: max(-w, FLOOR),
    "exp": mpmath.exp,
    "softplus": lambda w: mpmath.log1p(mpmath.exp(w)),
    "softplus+1e-4": lambda w: mpmath.log1p(mpmath.exp(w)) + FLOOR,
    "-logsigmoid": lambda w: mpmath.log1p(mpmath.exp(-w)),
    "sigmoid": lambda w: 1 / (1 + mpmath.exp(-w)),
    "relu": lambda w: max(w, mpmath.mpf(0)),
    "relu+1e-4": lambda w: max(w, mpmath.mpf(0)) + FLOOR,
    "best": lambda w: 1 / (w**2 + mpmath.mpf(0.5)),
    "best(b=0.1)": lambda w: 1 / (w**2 + mpmath.mpf(0.1)),
    "best(a=2, b=1.5)": lambda w: 1 / (2 * w**2 + mpmath.mpf(1.5)),
    "heavy-tail": lambda w: 1 + w if w >= 0 else 1 / (1 - w),
}
WEIGHTS = (-90.0, -30.0, -5.0, -1.5, -0.3, -1e-3, 0.0, 2e-4, 0.3, 0.75, 1.25, 5.0, 30.0, 90.0)

each_map = pytest.mark.parametrize("name", NAMES)
each_form = pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def eigenvalue(name: str, w: mpmath.mpf) -> mpmath.mpf:
    """λ̄ in discrete form, as P1's table and the table of `maps` have it."""
    if name == "direct":
        return w
    f = FORMULAS[name](w)
    return 1 - f if name.startswith("best") else mpmath.exp(-f)


@each_map
def test_every_magnitude_over_600_decades_comes_back_through_the_inverse(name: str) -> None:
    """f(f⁻¹(r)) = r up to the rounding of w, which moves r by |w f′/f| units in the last place."""
    map = find_map(name)
    r = torch.logspace(-300, 300, 4001, dtype=torch.float64)
    if map.high < math.inf:
        r = torch.cat([r, map.high * (1 - torch.logspace(-15, -0.1, 200, dtype=torch.float64))])
    r = r[map.holds(r) & (r > 1.001 * map.low)]
    w = map.inverse(r)
    steepness = (map.scale(w) * r * w).abs().nan_to_num(0.0, posinf=0.0)
    # Where a floor is added to the rate, what is left of a rate near it has lost digits.
    lost = 1 / (1 - map.low / r)
    assert len(r) > 1000
    assert bool(((map(w) - r).abs() / r <= 4 * EPS * (1 + steepness + lost)).all())


@each_map
def test_every_stable_discrete_eigenvalue_comes_back_through_the_inverse(name: str) -> None:
    map = find_map(name)
    margins = torch.logspace(-15, -0.01, 1001, dtype=torch.float64)
    eigenvalues = 1 - margins
    if map.discrete == "1 - f":
        eigenvalues = eigenvalues[margins <= map.high]
    elif map.discrete != "w":
        eigenvalues = eigenvalues[map.holds(-eigenvalues.log()) & (-eigenvalues.log() > 1.001 * map.low)]
    back = map.eigenvalue(map.weight(eigenvalues, discrete=True), discrete=True)
    assert len(eigenvalues) > 250
    assert float(((back - eigenvalues).abs() / (1 - eigenvalues)).max()) < 1e-13 + EPS / 1e-13
    assert float((back - eigenvalues).abs().max()) < 40 * EPS


@pytest.mark.one_in(3)
@each_map
@each_form
def test_gradient_scale_is_the_slope_over_the_squared_margin(name: str, discrete: bool) -> None:
    """|f′|/f² or |f′|/(1 − |f|)² with f′ from sixty digits; infinite where the mode does not decay."""
    with mpmath.workdps(60):
        for w in WEIGHTS:
            value = eigenvalue(name, mpmath.mpf(w)) if discrete else FORMULAS[name](mpmath.mpf(w))
            function = (lambda x: eigenvalue(name, x)) if discrete else FORMULAS[name]
            slope = abs(mpmath.diff(function, mpmath.mpf(w), h=mpmath.mpf(10) ** -25))
            margin = 1 - abs(value) if discrete else value
            got = gradient_scale(name, tensor(w), discrete=discrete).item()
            if name == "relu" and w <= 0:
                assert got == 0  # P1's indicator: no rate, and no gradient either
            elif margin <= 0:
                assert got == math.inf
            elif not (name in ("heavy-tail", "relu", "relu+1e-4") and w == 0):  # a kink: no two-sided slope
                expected = slope / margin**2
                # Near λ̄ = −1 the margin 1 − |1 − f| has lost digits.
                assert abs(got - expected) <= (1e-12 + 4 * EPS / margin) * expected + mpmath.mpf(10) ** -30, (w, got)


@pytest.mark.one_in(14)
@each_map
@each_form
def test_relative_perturbation_is_the_worst_of_a_brute_force_search(name: str, discrete: bool) -> None:
    with mpmath.workdps(60):
        for w in WEIGHTS:
            for beta in (1e-5, 2**-9 * abs(w), 0.5 * abs(w), 0.01, 3.0):
                got = relative_perturbation(name, tensor(w), beta, discrete=discrete).item()
                expected = _worst(name, mpmath.mpf(w), mpmath.mpf(beta), discrete)
                if expected == mpmath.inf:
                    assert got == math.inf, (w, beta)
                else:
                    # w + β is rounded before f sees it: relatively to β, half an ulp of w.
                    slack = 1e-12 + (EPS * abs(w) / beta if beta else 0)
                    if discrete and name.startswith("best"):  # near λ̄ = −1 the margin has lost digits
                        slack += 16 * EPS / (1 - max(abs(eigenvalue(name, mpmath.mpf(w) + s * beta)) for s in (-1, 1)))
                    assert abs(got - expected) <= slack * (1 + expected) * expected + 1e-15, (w, beta, got, expected)


def _worst(name: str, w: mpmath.mpf, beta: mpmath.mpf, discrete: bool) -> mpmath.mpf:
    """sup over 41 weights within β, and 0 if it is among them, of the relative change of ∫ or Σ |λᵗ|."""
    others = [w + beta * k / 20 for k in range(-20, 21)] + ([mpmath.mpf(0)] if abs(w) <= beta else [])
    if discrete:
        here = eigenvalue(name, w)
        there = [eigenvalue(name, other) for other in others]
        if any(abs(value) >= 1 for value in (here, *there)):
            return mpmath.inf
        return max(abs(value - here) / (1 - abs(value)) for value in there)
    here, there = FORMULAS[name](w), [FORMULAS[name](other) for other in others]
    if any(value <= 0 for value in (here, *there)):
        return mpmath.inf
    return max(abs(here / value - 1) for value in there)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["exp", "best", "heavy-tail", "sigmoid"])
def test_relative_perturbation_is_the_integral_of_definition_3_4(name: str) -> None:
    """f(w) ∫ |e^{−f(w̃)t} − e^{−f(w)t}| dt by quadrature, at the worse end of the interval."""
    for w, beta in ((-1.5, 0.3), (0.7, 0.2), (2.5, 0.01)):
        r, *others = (FORMULAS[name](mpmath.mpf(w) + move) for move in (0, -beta, beta))
        integrals = [
            r * mpmath.quad(lambda t, a=r, b=o: abs(mpmath.exp(-b * t) - mpmath.exp(-a * t)), [0, 1, 10, mpmath.inf])
            for o in others
        ]
        assert relative_perturbation(name, tensor(w), beta).item() == pytest.approx(float(max(integrals)), rel=1e-9)


@pytest.mark.one_in(11)
@each_map
@each_form
@pytest.mark.parametrize("beta", [1e-6, 0.01, 0.7])
def test_no_weight_exceeds_the_stability_bound(name: str, beta: float, discrete: bool) -> None:
    """g(β) ≥ S(w, β) over weights of both signs from 1e-3 to 1e3, and at the weight where S is largest."""
    w = torch.logspace(-3, 3, 20001, dtype=torch.float64)
    w = torch.cat([-w, tensor(0.0), w, torch.linspace(-5, 5, 20001, dtype=torch.float64)])
    worst = float(relative_perturbation(name, w, beta, discrete=discrete).max())
    bound = stability_bound(name, beta, discrete=discrete)
    assert worst <= bound * (1 + 1e-9)
    if name in STABLE_MAPS and not discrete and bound < math.inf:
        assert worst == pytest.approx(bound, rel=1e-3), "the bound is the supremum itself"


def test_the_stable_maps_are_those_whose_bound_vanishes_with_the_perturbation() -> None:
    """Definition 3.4 tells direct and relu from the others; and the paper's b = 0.5 from b ≥ 1 in discrete form."""
    betas = [10.0**-k for k in range(1, 9)]
    for name in STABLE_MAPS:
        bounds = [stability_bound(name, beta) for beta in betas]
        if name in ("direct", "relu"):
            assert set(bounds) == {math.inf}
        else:
            assert all(0 < bound < 4 * beta for bound, beta in zip(bounds, betas, strict=True))
    assert stability_bound("best", 1e-3, discrete=True) == math.inf
    assert stability_bound("best(b=1)", 1e-3, discrete=True) == pytest.approx(stability_bound("best(b=1)", 1e-3))
    assert stability_bound("exp", 0.0) == 0


def test_gradient_over_weight_of_best_is_constant_and_of_the_others_is_not() -> None:
    """P1 §3.3: |f′|/f² = 2a|w| for best alone; the table of time constants, at τ = 10⁴."""
    tau = 1e4
    w = {
        name: find_map(name).inverse(tensor(1 / tau)) for name in ("direct", "exp", "best", "best(b=0.1)", "heavy-tail")
    }
    scales = {name: gradient_scale(name, value).item() for name, value in w.items()}
    assert scales["direct"] == pytest.approx(tau**2)
    assert scales["exp"] == pytest.approx(tau)
    assert scales["best"] == pytest.approx(2 * math.sqrt(tau - 0.5))
    assert scales["best(b=0.1)"] == pytest.approx(2 * math.sqrt(tau - 0.1))
    assert scales["heavy-tail"] == 1
    spread = torch.linspace(0.1, 100, 50, dtype=torch.float64)
    assert torch.allclose(gradient_scale("best(a=3, b=2)", spread) / spread, tensor(6.0))


def test_infinite_and_missing_perturbations_stay_what_they_are() -> None:
    w = tensor(-1.0, math.nan, -1.0, -1.0)
    got = relative_perturbation("exp", w, tensor(0.1, 0.1, math.inf, math.nan))
    assert got[0].item() == pytest.approx(math.expm1(0.1))
    assert got[1].isnan()
    assert got[2] == math.inf
    assert got[3].isnan()


def test_perturbation_takes_one_step_per_weight_and_float32_and_any_shape() -> None:
    w = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    got = relative_perturbation("softplus", w, rounding_step(w, "bfloat16"))
    assert got.shape == w.shape
    assert got.dtype == torch.float64
    one = relative_perturbation("softplus", w[1, 2, 3], rounding_step(w[1, 2, 3], "bfloat16"))
    assert got[1, 2, 3] == one


@pytest.mark.one_in(3)
@pytest.mark.parametrize("dtype", [dtype for dtype in ROUNDING_DTYPES if dtype != "int8"])
def test_rounding_step_is_half_the_gap_that_torch_casts_across(dtype: str) -> None:
    """No value moves further in torch's own cast, and some value in every binade moves nearly as far."""
    narrow = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    info = torch.finfo(narrow)
    low, high = math.log2(info.tiny * info.eps) - 3, math.log2(info.max)
    w = torch.exp2(low + (high - low) * torch.rand(100_000, generator=generator, dtype=torch.float64))
    w = torch.cat([w, -w, tensor(0.0, info.max, info.tiny)])
    moved = (w.float() if dtype != "float32" else w).to(narrow).double() - w
    kept = moved.isfinite()
    step = rounding_step(w, dtype)
    # Narrow casts go through float32 here, which moves w first by 2⁻²⁴ of itself.
    assert bool((moved.abs() <= step + (2**-24 * w.abs()).clamp(min=2**-150))[kept].all())
    assert bool(step[kept].isfinite().all())
    binade = w.abs().clamp(min=info.tiny).log2().floor()
    for exponent in binade[kept & (w != 0)].unique()[:-1]:
        inside = (binade == exponent) & kept
        if int(inside.sum()) > 250:
            assert float((moved.abs() / step)[inside].max()) > 0.95


def test_rounding_step_is_infinite_exactly_where_the_cast_overflows() -> None:
    for dtype in ("bfloat16", "float16", "float8_e5m2"):
        narrow = getattr(torch, dtype)
        top = torch.finfo(narrow).max
        w = tensor(*[top * (1 + k / 1000) for k in range(-50, 151)])
        lost = ~w.float().to(narrow).double().isfinite()
        assert torch.equal(rounding_step(w, dtype).isinf(), lost), dtype
        assert bool(lost.any())
    # float8_e4m3fn has no infinity: torch gives NaN or the largest value, as its release has it.
    assert rounding_step(tensor(464.0, 464.1), "float8_e4m3").tolist() == [16.0, math.inf]


def test_a_weight_that_underflows_reaches_the_boundary_of_the_direct_map() -> None:
    w = tensor(-1e-9)
    assert w.to(torch.float16).item() == 0
    assert relative_perturbation("direct", w, rounding_step(w, "fp16")).item() == math.inf


def test_int8_has_one_scale_for_the_whole_tensor_and_ignores_what_is_not_finite() -> None:
    w = tensor(-2.54, 0.1, math.nan, 0.0)
    assert rounding_step(w, "int8").tolist()[:2] == pytest.approx([0.01, 0.01])
    assert rounding_step(w, "int8")[2].isnan()
    quantised = (w / (2.54 / 127)).round() * (2.54 / 127)
    assert bool(((quantised - w).abs() <= rounding_step(w, "int8") * (1 + 1e-12))[[0, 1, 3]].all())
    with pytest.raises(ValueError, match="no rounding step for 'int4'; expected one of bfloat16"):
        rounding_step(w, "int4")


@each_map
def test_maps_have_the_gradient_of_their_formula(name: str) -> None:
    """Autograd at 0 and in both tails; where a map has a kink, either side's slope will do."""
    for w in (-40.0, -1.5, 0.0, 0.8, 40.0):
        x = tensor(w).requires_grad_()
        find_map(name)(x).sum().backward()
        h = mpmath.mpf(10) ** -20
        with mpmath.workdps(60):
            sides = [(FORMULAS[name](mpmath.mpf(w) + s * h) - FORMULAS[name](mpmath.mpf(w))) / (s * h) for s in (-1, 1)]
        assert x.grad is not None
        assert min(abs(x.grad.item() - side) for side in sides) <= 1e-12 * max(abs(side) for side in sides) + 1e-15


def test_best_takes_its_numbers_in_any_spelling_and_has_one_name_for_each() -> None:
    spellings = {
        "best": "best", "best(1, 0.5)": "best", "best(b=.5)": "best", "best(a=1,b=0.1)": "best(b=0.1)",
        "best(b=1e-1)": "best(b=0.1)", "best(2)": "best(a=2)", "best( a = 2 , b = 3 )": "best(a=2, b=3)",
        "best(b=3, a=2)": "best(a=2, b=3)", "best()": "best",
    }  # fmt: skip
    for spelling, name in spellings.items():
        assert find_map(spelling).name == name
        assert find_map(name).name == name
    assert find_map("best(a=2, b=3)")(tensor(1.0)).item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["tanh", "", "best(c=1)", "best(b=x)", "best(1, 2, 3)", "Best", "best(a=1"])
def test_an_unknown_map_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(MapError, match=r"no map is called") as error:
        find_map(name)
    for known in (*STABLE_MAPS, "best(a=…, b=…)", "-logsigmoid"):
        assert known in str(error.value)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (-1, 1), (1, math.nan), (math.inf, 1)])
def test_best_wants_positive_numbers(a: float, b: float) -> None:
    with pytest.raises(MapError, match="a > 0, b > 0"):
        best(a, b)
