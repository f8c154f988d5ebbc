"""The Annotated S4's three layers against their definitions in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ssmdiag.diagnosis import extract_recurrences
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import stepped_kernel
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]
MODES, CHANNELS, LENGTH = 5, 3, 16
RNG = np.random.default_rng(2)
REAL = RNG.uniform(-1, 0.1, size=(MODES, CHANNELS))
REAL[0, 0] = 0.2
IMAG = 5 * RNG.normal(size=(MODES, CHANNELS))
STEP = RNG.uniform(-4, -2, size=(1, CHANNELS))
C = RNG.normal(size=(MODES, CHANNELS, 2))


def tensors(**values: np.ndarray) -> dict[str, torch.Tensor]:
    return {f"layers_0.seq.{name}": torch.tensor(value) for name, value in values.items()}


def test_s4d_clips_the_real_part_and_ignores_b(read_model: Read) -> None:
    extra = {"B_re": np.full((MODES, CHANNELS), 3.0), "B_im": np.ones((MODES, CHANNELS))}
    (found,) = read_model(tensors(A_re=REAL, A_im=IMAG, C=C, log_step=STEP, **extra))
    A, step = np.minimum(REAL, -1e-4) + 1j * IMAG, np.exp(STEP)
    np.testing.assert_allclose(found.log_eigenvalues.numpy(), (step * A).T, rtol=RELATIVE["float64"])
    discrete = np.exp(step * A)
    kernel = [((C[..., 0] + 1j * C[..., 1]) * (discrete - 1) / A * discrete**t).sum(0).real for t in range(LENGTH)]
    np.testing.assert_allclose(stepped_kernel(found, LENGTH)[0].numpy(), np.array(kernel).T, rtol=1e-9, atol=1e-13)
    assert (found.spelling, found.kernel_factor, found.conjugate_pairs) == ("S4D", 1.0, False)


def low_rank() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    P, B = (rng.normal(size=(2, MODES, CHANNELS)) + 1j * rng.normal(size=(2, MODES, CHANNELS))).astype(np.complex64)
    return {"Lambda_re": REAL, "Lambda_im": IMAG, "P": P, "B": B, "C": C, "log_step": STEP}


def discrete(w: dict[str, np.ndarray], channel: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Ā and B̄ of one channel by the bilinear rule."""
    P, B = (w[name][:, channel].astype(complex) for name in "PB")
    A = np.diag(np.minimum(REAL, -1e-4)[:, channel] + 1j * IMAG[:, channel]) - np.outer(P, P.conj())
    step = np.exp(STEP[0, channel])
    inverse = np.linalg.inv(np.eye(MODES) - step / 2 * A)
    return inverse @ (np.eye(MODES) + step / 2 * A), step * inverse @ B


def test_s4_kernel_is_the_inverse_transform_of_its_truncated_generating_function(read_model: Read) -> None:
    """At the L-th roots of unity Σ_{t<L} K_t z^t = C̃(I − zĀ)⁻¹B̄, so L values of it give K."""
    w = low_rank()
    (found,) = read_model(tensors(**w), {"l_max": LENGTH})
    roots = np.exp(-2j * np.pi * np.arange(LENGTH) / LENGTH)
    for channel in range(CHANNELS):
        state_matrix, input_matrix = discrete(w, channel)
        C_tilde = C[:, channel, 0] - 1j * C[:, channel, 1]
        values = [C_tilde @ np.linalg.solve(np.eye(MODES) - z * state_matrix, input_matrix) for z in roots]
        expected = np.fft.ifft(values).real
        kernel = stepped_kernel(found, LENGTH)[0, channel].numpy()
        assert np.abs(kernel - expected).max() < 1e-11 * np.abs(expected).max()
        own = np.linalg.eigvals(state_matrix)
        read = found.log_eigenvalues[channel].exp().numpy()
        assert np.abs(own[:, None] - read).min(1).max() < RELATIVE["float64"]
    assert found.assumptions[0].source == "file"


def test_s4_without_its_length_has_a_spectrum_and_no_kernel(read_model: Read) -> None:
    (found,) = read_model(tensors(**low_rank()))
    assert found.dense is None
    assert any("kernel is unknown" in note for note in found.notes)
    assert found.rate.min() > 0


def softmax_kernel(w: dict[str, np.ndarray]) -> np.ndarray:
    eigenvalues, step = w["Lambda_re"] + 1j * w["Lambda_im"], np.exp(STEP[0])
    kernel = np.zeros((CHANNELS, LENGTH))
    for channel in range(CHANNELS):
        for mode in range(MODES):
            pole = eigenvalues[mode, channel]
            exponents = step[channel] * pole * np.arange(LENGTH)
            shifted = np.exp(exponents - exponents[np.argmax(exponents.real)])
            total = shifted.sum()
            W = w["W"][0, channel, mode, 0] + 1j * w["W"][0, channel, mode, 1]
            kernel[channel] += (W / pole * shifted * total.conj() / (abs(total) ** 2 + 1e-7)).real
    return kernel


def test_dss_softmax_is_normalised_over_the_length(read_model: Read) -> None:
    w = {
        "Lambda_re": REAL,
        "Lambda_im": IMAG,
        "W": np.random.default_rng(4).normal(size=(1, CHANNELS, MODES, 2)),
        "log_step": STEP,
    }
    (found,) = read_model(tensors(**w), l_max=str(LENGTH))
    expected = softmax_kernel(w)
    np.testing.assert_allclose(stepped_kernel(found, LENGTH)[0].numpy(), expected, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(
        found.log_eigenvalues.numpy(), (np.exp(STEP) * (REAL + 1j * IMAG)).T, rtol=RELATIVE["float64"]
    )


def test_dss_without_its_length_has_a_spectrum_and_no_kernel(tmp_path: Path) -> None:
    w = {
        "Lambda_re": REAL,
        "Lambda_im": IMAG,
        "W": np.random.default_rng(4).normal(size=(1, CHANNELS, MODES, 2)),
        "log_step": STEP,
    }
    np.savez(tmp_path / "dss.npz", **{f"params/layers_0/seq/{name}": value for name, value in w.items()})
    (found,) = extract_recurrences(tmp_path / "dss.npz")
    assert found.layer == "params.layers_0.seq"
    assert (found.input_matrix, found.output_matrix) == (None, None)
