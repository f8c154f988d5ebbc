"""Centaurus, all four kinds, against the state that its `step` moves on from one token to the next, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel, stepped_matrix_kernel

Read = Callable[..., list[Recurrence]]
STATES, MODES, WIDTH, LAGS = 4, 3, 5, 30


def weights(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {
        "neck": ((STATES, WIDTH), (WIDTH, STATES)),
        "pointwise": ((STATES * MODES, WIDTH), (WIDTH, STATES * MODES)),
        "single": ((STATES,), (STATES,)),
    }[kind]
    w = {
        "log_delta": rng.uniform(-4, 0, size=STATES),
        "A": np.complex64(-rng.uniform(0.1, 1, size=(STATES, MODES)) + 1j * rng.uniform(0, 3, size=(STATES, MODES))),
        "B": rng.normal(size=shapes[0]),
        "C": rng.normal(size=shapes[1]),
    }
    return w if kind == "pointwise" else w | {"E": rng.normal(size=(STATES, MODES))}


def moved_on(w: dict[str, np.ndarray], B: np.ndarray, C: np.ndarray) -> np.ndarray:
    """Return the responses to an impulse in each input, (lag, output, input)."""
    decay = np.exp(np.exp(w["log_delta"])[:, None] * w["A"])
    rows = []
    for input in range(B.shape[1]):
        state, out = np.zeros((STATES, MODES), dtype=complex), []
        for t in range(LAGS):
            drive = B[:, input] * (t == 0)
            if "E" in w:
                state = decay * state + drive[:, None]
                out.append(C @ (state.real * w["E"]).sum(1))
            else:
                state = decay * state + drive.reshape(STATES, MODES)
                out.append(C @ state.real.flatten())
        rows.append(np.array(out))
    return np.stack(rows, -1)


def read(read_model: Read, w: dict[str, np.ndarray]) -> Recurrence:
    (found,) = read_model({f"blocks.0.layer.{name}": torch.from_numpy(value) for name, value in w.items()})
    return found


@pytest.mark.parametrize("kind", ["neck", "pointwise"])
def test_the_kernel_is_what_its_steps_give(kind: str, read_model: Read) -> None:
    w = weights(kind)
    step = np.exp(w["log_delta"])
    B = (step if kind == "neck" else step.repeat(MODES))[:, None] * w["B"]
    found = read(read_model, w)
    expected = torch.from_numpy(moved_on(w, B, w["C"]))
    assert relative_error(stepped_matrix_kernel(found, LAGS), expected) < 1e-12
    assert found.spelling == f"SforAiDl/lrnnx, {kind}"
    np.testing.assert_allclose(found.rate.numpy(), -(step[:, None] * w["A"].real).reshape(1, -1), rtol=1e-14)


def test_a_state_per_channel_has_a_kernel_of_its_own(read_model: Read) -> None:
    w = weights("single")
    responses = moved_on(w, np.diag(np.exp(w["log_delta"]) * w["B"]), np.diag(w["C"]))
    expected = np.stack([responses[:, n, n] for n in range(STATES)])[None]
    assert relative_error(stepped_kernel(read(read_model, w), LAGS), torch.from_numpy(expected)) < 1e-12


def test_a_state_per_pair_has_a_kernel_of_its_own(read_model: Read) -> None:
    """The full kind: state n leads from input n mod H to output n div H, and H² = 4 states make H = 2."""
    w = weights("single")
    B, C = np.zeros((STATES, 2)), np.zeros((2, STATES))
    for n in range(STATES):
        B[n, n % 2], C[n // 2, n] = np.exp(w["log_delta"][n]) * w["B"][n], w["C"][n]
    responses = moved_on(w, B, C)
    expected = np.stack([responses[:, n // 2, n % 2] for n in range(STATES)])[None]
    assert relative_error(stepped_kernel(read(read_model, w), LAGS), torch.from_numpy(expected)) < 1e-12


def test_a_mode_that_grows_is_found(read_model: Read) -> None:
    w = weights("neck")
    w["A"][1, 2] = 0.1 + 1j
    assert int((read(read_model, w).rate < 0).sum()) == 1
