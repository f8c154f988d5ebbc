"""Recurrences of the built-in model: kernel, outputs and gradients against the recurrence stepped in complex128."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmdiag.errors import MapError
from ssmdiag.recurrence.maps import STABLE_MAPS, find_map
from ssmdiag.retrain.arms import STARTS, Arm
from ssmdiag.retrain.convolution import TOEPLITZ, causal_convolution, fft_size, gate, linear, modal_states
from ssmdiag.retrain.recurrences import LRU, RECURRENCES, S4D, MapsOfArms
from tests.reference import relative_error
from tests.retrain.published import direct_kernel as published_kernel
from tests.retrain.small import ensemble, task

LENGTHS = (1, 2, 7, 31, 100, TOEPLITZ, TOEPLITZ + 1, 300)


def double(layer: type[S4D] | type[LRU], *arms: Arm, channels: int = 3, modes: int = 4) -> dict[str, Tensor]:
    starts = [layer.start(arm, channels, modes, 64, torch.Generator().manual_seed(arm.seed)) for arm in arms]
    return {name: torch.stack([start[name] for start in starts]).double() for name in starts[0]}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepped_s4d(p: dict[str, Tensor], arm: Arm, position: int, u: Tensor) -> Tensor:
    """Step h ← λ̄ h + B̄ u of arXiv 2206.11893 for one arm, u (batch, step, channel)."""
    step = p["kernel.log_dt"][position].exp()[:, None]
    eigenvalues = torch.complex(-find_map(arm.param)(p["kernel.log_A_real"][position]), p["kernel.A_imag"][position])
    decay = (step * eigenvalues).exp()
    into = (decay - 1) / eigenvalues
    C = torch.view_as_complex(p["kernel.C"][position])
    h = torch.zeros(len(u), *C.shape, dtype=torch.complex128)
    rows = []
    for t in range(u.shape[1]):
        h = decay * h + into * u[:, t, :, None]
        rows.append(2 * (C * h).sum(-1).real + p["D"][position] * u[:, t])
    return torch.stack(rows, 1)


def stepped_lru(p: dict[str, Tensor], arm: Arm, position: int, u: Tensor) -> Tensor:
    """Step h ← λ̄ h + γ B u of arXiv 2303.06349 for one arm."""
    radius = (-find_map(arm.param)(p["nu_log"][position])).exp()
    decay = torch.polar(radius, p["theta_log"][position].exp())
    B = torch.complex(p["B_re"][position], p["B_im"][position]) * p["gamma_log"][position].exp()[:, None]
    C = torch.complex(p["C_re"][position], p["C_im"][position])
    h = torch.zeros(len(u), len(decay), dtype=torch.complex128)
    rows = []
    for t in range(u.shape[1]):
        h = decay * h + u[:, t].to(torch.complex128) @ B.T
        rows.append((h @ C.T).real + p["D"][position] * u[:, t])
    return torch.stack(rows, 1)


STEPPED = {"s4d": stepped_s4d, "lru": stepped_lru}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", RECURRENCES)
def test_a_layer_is_its_recurrence_stepped(name: str, length: int) -> None:
    arms = (Arm("exp"), Arm("best", seed=1), Arm("exp", seed=2, init="short"))
    p = double(RECURRENCES[name], *arms)
    u = noise(3, 2, length, 3)
    y = RECURRENCES[name].apply(p, MapsOfArms(arms), u)
    for k, arm in enumerate(arms):
        assert relative_error(y[k], STEPPED[name](p, arm, k, u[k])) < 1e-12


@pytest.mark.parametrize("length", [1, 37, 200])
def test_the_kernel_by_the_split_is_the_direct_kernel(length: int) -> None:
    arms = (Arm("exp", init="long"), Arm("direct", seed=1))
    p = double(S4D, *arms, channels=5, modes=32)
    maps = MapsOfArms(arms)
    assert relative_error(S4D.kernel(p, maps, length), published_kernel(p, maps, length)) < 1e-12


def test_the_kernel_in_float32_is_more_exact_than_the_published_one() -> None:
    arms = (Arm("exp"),)
    p = double(S4D, *arms, channels=5, modes=32)
    p["kernel.log_A_real"] -= 6  # modes that turn 6,000 times and are still there
    p["kernel.log_dt"] = torch.full_like(p["kernel.log_dt"], math.log(0.1))
    single = {name: value.float() for name, value in p.items()}
    exact = S4D.kernel({name: value.double() for name, value in single.items()}, MapsOfArms(arms), 4096)
    split, direct = (
        relative_error(form(single, MapsOfArms(arms), 4096).double(), exact) for form in (S4D.kernel, published_kernel)
    )
    assert split < 2e-6
    assert direct > 100 * split


def test_a_mode_on_the_boundary_has_a_finite_kernel_and_gradient() -> None:
    p = double(S4D, Arm("direct"))
    for name, value in (("kernel.log_A_real", 0.0), ("kernel.A_imag", 0.0)):
        p[name] = torch.full_like(p[name], value)
    p = {name: value.requires_grad_() for name, value in p.items()}
    K = S4D.kernel(p, MapsOfArms([Arm("direct")]), 20)
    gradients = torch.autograd.grad(K.sum(), [p[name] for name in p if name != "D"])
    C, step = p["kernel.C"][..., 0], p["kernel.log_dt"].exp()
    assert relative_error(K.detach(), (2 * (C.sum(-1) * step))[..., None].expand(K.shape).detach()) < 1e-12
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("steps", [9, TOEPLITZ + 2])
@pytest.mark.parametrize("name", RECURRENCES)
def test_gradients_of_a_layer_are_those_of_the_stepped_recurrence(name: str, steps: int) -> None:
    arm = Arm("softplus", seed=3)
    p = {name: value.requires_grad_() for name, value in double(RECURRENCES[name], arm).items()}
    u = noise(1, 2, steps, 3).requires_grad_()
    weight = noise(1, 2, steps, 3, seed=1)
    wanted = [u, *p.values()]
    fast = torch.autograd.grad((weight * RECURRENCES[name].apply(p, MapsOfArms([arm]), u)).sum(), wanted)
    slow = torch.autograd.grad((weight[0] * STEPPED[name](p, arm, 0, u[0])).sum(), wanted)
    for a, b in zip(fast, slow, strict=True):
        assert relative_error(a, b) < 1e-10


@pytest.mark.one_in(3)
@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize(("steps", "batch"), [(5, 2), (7, 2), (50, 40), (TOEPLITZ + 1, 40)])
def test_convolution_and_its_gradients_are_torchs(arms: int, steps: int, batch: int) -> None:
    u, K = noise(arms, batch, steps, 3).requires_grad_(), noise(arms, 3, steps, seed=1).requires_grad_()
    weight = noise(arms, batch, steps, 3, seed=2)
    y = causal_convolution(u, K)
    signals = u.permute(1, 0, 3, 2).flatten(1, 2)
    flipped = K.flip(-1).flatten(0, 1)[:, None]
    direct = torch.nn.functional.conv1d(signals, flipped, padding=steps - 1, groups=3 * arms)[..., :steps]
    direct = direct.unflatten(1, (arms, 3)).permute(1, 0, 3, 2)
    assert relative_error(y.detach(), direct.detach()) < 1e-12
    for a, b in zip(
        torch.autograd.grad((weight * y).sum(), [u, K]),
        torch.autograd.grad((weight * direct).sum(), [u, K]),
        strict=True,
    ):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("steps", [1, 6, 11, 50])
def test_states_of_growing_modes_are_finite_as_long_as_they_are(steps: int) -> None:
    ell = torch.complex(torch.tensor([[12.0, -800.0]]), torch.tensor([[1.0, 0.5]])).to(torch.complex128)
    drive = noise(1, 4, 1, steps)
    states = modal_states(ell, drive)
    h, v = torch.zeros(2, dtype=torch.complex128), torch.complex(drive[0, :2, 0], drive[0, 2:, 0])
    for t in range(steps):
        h = ell[0].exp() * h + v[:, t]
    assert relative_error(torch.complex(states[0, :2, 0, -1], states[0, 2:, 0, -1]), h) < 1e-12


@pytest.mark.parametrize("steps_fastest", [False, True])
@pytest.mark.parametrize("channels_slowest", [False, True])
def test_linear_has_torchs_values_and_gradients_in_any_layout(steps_fastest: bool, channels_slowest: bool) -> None:
    x = noise(2, 3, 5, 4)
    x = (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1) if channels_slowest else x).requires_grad_()
    weight, bias = noise(2, 6, 4, seed=1).requires_grad_(), noise(2, 6, seed=2).requires_grad_()
    out = linear(x, weight, bias, steps_fastest=steps_fastest)
    plain = torch.einsum("abtc,aoc->abto", x, weight) + bias[:, None, None]
    assert relative_error(out.detach(), plain.detach()) < 1e-13
    ours, theirs = (torch.autograd.grad(y.sin().sum(), [x, weight, bias]) for y in (out, plain))
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-12
    # What was computed before x is as fast as the layout of its gradient lets it be.
    assert ours[0].stride() == x.stride()


def test_gate_is_torchs_glu() -> None:
    z = noise(2, 3, 8).requires_grad_()
    other = torch.nn.functional.glu(z, -1)
    assert relative_error(gate(z).detach(), other.detach()) < 1e-14
    ours, theirs = (torch.autograd.grad(y.square().sum(), z)[0] for y in (gate(z), other))
    assert relative_error(ours, theirs) < 1e-13


@pytest.mark.parametrize("steps", [1, 2, 100, 1000, 1025])
def test_fft_sizes_hold_the_convolution_and_have_small_factors(steps: int) -> None:
    size = fft_size(steps)
    assert 2 * steps - 1 <= size <= 2.3 * steps
    for factor in (2, 3, 5):
        while size % factor == 0:
            size //= factor
    assert size == 1


@pytest.mark.parametrize("init", STARTS)
@pytest.mark.parametrize("name", RECURRENCES)
def test_every_map_starts_as_the_same_function(name: str, init: str) -> None:
    data = task()
    arms = [Arm(param, seed=5, init=init) for param in (*STABLE_MAPS, "best(b=0.1)")]  # type: ignore[arg-type]
    inputs = data.inputs[:4].expand(len(arms), -1, -1, -1)
    answers = ensemble(*arms, recurrence=name, data=data, depth=2).forward(inputs).detach()
    for other in answers[1:]:
        assert relative_error(other, answers[0]) < 5e-6


def test_other_seeds_start_as_other_functions() -> None:
    both = ensemble(Arm("exp"), Arm("exp", seed=1)).parameters
    assert not any(value[0].equal(value[1]) for name, value in both.items() if "norms" not in name and "A_" not in name)


@pytest.mark.parametrize(("name", "rate"), [("s4d", 0.5), ("lru", None)])
@pytest.mark.parametrize(("init", "longest"), [("short", (1, 10.01)), ("long", (32, 64 * 5.01))])
def test_initial_time_constants_are_what_was_asked(name: str, rate: float | None, init: str, longest: tuple) -> None:
    layer = RECURRENCES[name]
    p = layer.start(Arm("exp", init=init), 64, 256, 64, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    rates = p["nu_log"].exp() if rate is None else rate * p["kernel.log_dt"].exp()
    assert longest[0] <= float(1 / rates.max()) * 1.0001
    assert float(1 / rates.min()) <= longest[1]


@pytest.mark.parametrize(
    ("arm", "name", "says", "advice"),
    [
        (
            Arm("best(b=2.5)"),
            "s4d",
            "cannot hold 24 of 24 rates that the modes of S4D start at, up to 0.5",
            "best(b=1)",
        ),
        (Arm("best(b=2)"), "s4d", "24 of 24", "best(b=1)"),  # held, but at w = 0, where the gradient vanishes
        (Arm("best(b=3)"), "lru", "of 4 rates that the modes of LRU start at", "best(b="),
        (Arm("best(b=5)", init="short"), "lru", "start at with --init short", "best(b="),
    ],
)
def test_a_map_that_does_not_reach_the_first_rates_says_which_does(arm: Arm, name: str, says: str, advice: str) -> None:
    with pytest.raises(MapError) as caught:
        ensemble(arm, recurrence=name)
    assert says in caught.value.seen
    assert advice in str(caught.value.advice)
    b = float(str(caught.value.advice).split("best(b=")[1].split(")")[0])
    ensemble(Arm(f"best(b={b})", init=arm.init), recurrence=name)
