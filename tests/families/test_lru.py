"""LRU and its ports: each spelling against the recurrence of the paper, LRU-pytorch against its own module."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from LRU_pytorch import LRU
from torch import Tensor

from ssmdiag.recurrence.modal import Recurrence
from tests.reference import stepped_matrix_kernel
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]
LAGS = 60
RNG = np.random.default_rng(3)
NU, THETA, GAMMA = RNG.normal(size=7) - 3, RNG.normal(size=7), RNG.normal(size=7)
B = RNG.normal(size=(7, 2)) + 1j * RNG.normal(size=(7, 2))
C = RNG.normal(size=(4, 7)) + 1j * RNG.normal(size=(4, 7))


def response(gain: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Return y (lag, output, input) to an impulse, stepping h ← λh + γBu."""
    eigenvalues = np.exp(-np.exp(NU) + 1j * np.exp(THETA))
    state, outputs = gain[:, None] * B, []
    for _ in range(LAGS):
        outputs.append((C @ state).real)
        state = eigenvalues[:, None] * state
    return np.array(outputs)


def spelled(spelling: str, C: np.ndarray = C) -> dict[str, Tensor]:
    ring = {"nu_log": NU, "theta_log": THETA}
    matrices = {
        "minimal-LRU, lrnnx": {"B_re": B.real, "B_im": B.imag, "C_re": C.real, "C_im": C.imag},
        "LRU-pytorch": {"B": B.astype(np.complex64), "C": C.astype(np.complex64)},
        "B and C as (re, im)": {"B": np.stack([B.real, B.imag], -1), "C": np.stack([C.real, C.imag], -1)},
        "LRURec": {"in_proj.weight": B.astype(np.complex64), "out_proj.weight": C.astype(np.complex64)},
    }[spelling]
    if spelling == "LRURec":
        ring = {"params_log": np.stack([NU, THETA, GAMMA])}
    return {f"blocks.0.seq.{name}": torch.tensor(value) for name, value in (ring | matrices).items()}


@pytest.mark.parametrize("spelling", ["minimal-LRU, lrnnx", "LRU-pytorch", "B and C as (re, im)", "LRURec"])
def test_every_spelling_is_the_same_recurrence(read_model: Read, spelling: str) -> None:
    state = spelled(spelling)
    if spelling != "LRURec":
        state["blocks.0.seq.gamma_log"] = torch.tensor(GAMMA)
    (found,) = read_model(state)
    assert found.spelling == spelling
    expected = -np.exp(NU) + 1j * np.exp(THETA)
    np.testing.assert_allclose(found.log_eigenvalues[0].numpy(), expected, rtol=RELATIVE["float64"])
    exact = spelling in ("minimal-LRU, lrnnx", "B and C as (re, im)")
    kernel = response(np.exp(GAMMA), C)
    tolerance = 1e-12 if exact else 1e-6
    assert np.abs(stepped_matrix_kernel(found, LAGS).numpy() - kernel).max() < tolerance * np.abs(kernel).max()
    assert (found.kernel_factor, found.conjugate_pairs, found.step) == (1.0, False, None)
    assert [(w.role, w.map) for w in found.weights] == [("rate", "exp"), ("frequency", "exp")]


def test_without_gamma_log_the_gain_comes_from_the_radius(read_model: Read) -> None:
    (found,) = read_model(spelled("minimal-LRU, lrnnx"))
    gain = np.sqrt(1 - np.exp(-2 * np.exp(NU)))
    np.testing.assert_allclose(stepped_matrix_kernel(found, LAGS).numpy(), response(gain, C), rtol=1e-9, atol=1e-12)
    assert any("gamma_log" in note for note in found.notes)


def test_twice_the_columns_of_c_are_two_directions(read_model: Read) -> None:
    wide = np.concatenate([C, 2j * C], 1)
    state = spelled("minimal-LRU, lrnnx", wide) | {"blocks.0.seq.gamma_log": torch.tensor(GAMMA)}
    forward, backward = read_model(state)
    assert (forward.layer, backward.layer) == ("blocks.0.seq (forward)", "blocks.0.seq (backward)")
    kernel = response(np.exp(GAMMA), 2j * C)
    np.testing.assert_allclose(stepped_matrix_kernel(backward, LAGS).numpy(), kernel, rtol=1e-11, atol=1e-12)


def test_a_rate_far_below_float64_resolution_of_the_eigenvalue_is_kept(read_model: Read) -> None:
    state = spelled("minimal-LRU, lrnnx")
    state["blocks.0.seq.nu_log"] = torch.full((7,), -60.0, dtype=torch.float64)
    (found,) = read_model(state)
    np.testing.assert_allclose(found.rate.numpy(), np.exp(-60.0), rtol=RELATIVE["float64"])
    assert (found.margin > 0).all()


def test_lru_pytorch_responds_as_its_own_module(read_model: Read) -> None:
    torch.manual_seed(1)
    model = LRU(3, 2, 8, rmin=0.5, rmax=0.99)
    (found,) = read_model(model.state_dict())
    with torch.no_grad():
        impulses = torch.zeros(3, LAGS, 3)
        impulses[torch.arange(3), 0, torch.arange(3)] = 1
        own = model(impulses) - impulses @ model.D.T
    kernel = stepped_matrix_kernel(found, LAGS)
    assert (own.permute(1, 2, 0) - kernel).abs().max() < 2e-6 * kernel.abs().max()


@pytest.mark.parametrize("both", [True, False])
def test_sbis_lru_holds_both_directions_in_one_state(read_model: Read, both: bool) -> None:
    """Stepped as sbi does: the second half of the state reads the flipped input and its output is flipped back."""
    rng = np.random.default_rng(5)
    nu, theta, gamma = rng.normal(size=8) - 2, rng.normal(size=8), rng.normal(size=8)
    b, c = ((rng.normal(size=size) + 1j * rng.normal(size=size)).astype("c8") for size in ((8, 2), (2, 8)))
    state = {"log_nu": nu, "log_theta": theta, "log_gamma": gamma, "B": b, "C": c, "D": rng.normal(size=2)}
    assume = {} if both else {"bidirectional": "false"}
    found = read_model({f"lru_blocks.0.lru.{name}": torch.tensor(value) for name, value in state.items()}, **assume)
    assert [r.layer.removeprefix("lru_blocks.0.lru") for r in found] == (
        [" (forward)", " (backward)"] if both else [""]
    )
    input = rng.normal(size=(21, 2))
    driven = input.astype(complex) @ (b * np.exp(gamma)[:, None]).T
    half = 4 if both else 8
    driven[:, half:] = driven[::-1, half:]
    states = np.zeros((21, 8), complex)
    for time in range(21):
        before = states[time - 1] if time else 0
        states[time] = np.exp(-np.exp(nu) + 1j * np.exp(theta)) * before + driven[time]
    states[:, half:] = states[::-1, half:]
    output = (states @ c.T).real
    ours = np.zeros((21, 2))
    for recurrence, flipped in zip(found, (False, True), strict=False):
        kernel = stepped_matrix_kernel(recurrence, 21).numpy()
        seen = input[::-1] if flipped else input
        response = np.array([sum(kernel[lag] @ seen[time - lag] for lag in range(time + 1)) for time in range(21)])
        ours += response[::-1] if flipped else response
    np.testing.assert_allclose(ours, output, rtol=1e-9, atol=1e-10)


def test_an_odd_number_of_modes_is_one_direction(read_model: Read) -> None:
    state = {"log_nu": (7,), "log_theta": (7,), "log_gamma": (7,), "B": (7, 2), "C": (2, 7)}
    tensors = {
        f"lru.{name}": torch.randn(size, dtype=torch.complex64 if name in "BC" else torch.float32)
        for name, size in state.items()
    }
    (recurrence,) = read_model(tensors)
    assert (recurrence.modes, [a.source for a in recurrence.assumptions]) == (7, ["inferred"])
