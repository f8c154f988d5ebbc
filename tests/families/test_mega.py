"""Mega, its copies in other repositories, and Megalodon, against moving averages stepped one by one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence
from tests.reference import stepped_kernel
from tests.tolerances import RELATIVE

Read = Callable[..., list[Recurrence]]
LAGS, MODES, CHANNELS = 40, 3, 4
NAMES = {
    "facebookresearch/mega": ("delta", "alpha", "beta", "gamma", "omega"),
    "transformers, mega": (
        "damping_factor",
        "decay_factor",
        "ema_expansion_matrix",
        "kernel_projection_matrix",
        "residual_weight",
    ),
}


def sigmoid(w: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-w))


def weights(rows: int, outputs: int | None = None, tied: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "delta": rng.normal(size=(rows, 1 if tied else MODES, 1)),
        "alpha": rng.normal(size=(rows, MODES, 1)),
        "beta": rng.normal(size=(rows, MODES, 1)),
        "gamma": rng.normal(size=(outputs or rows, MODES)),
    }


def average(w: dict[str, np.ndarray], gamma: np.ndarray) -> np.ndarray:
    """Return y (row, lag) to an impulse: h ← (1 − σ(δ)σ(α))h + σ(δ)βx, y = Σ γ√(1/N) h."""
    weight = sigmoid(w["delta"])[..., 0]
    kept = 1 - weight * sigmoid(w["alpha"])[..., 0]
    state, outputs = weight * w["beta"][..., 0], []
    for _ in range(LAGS):
        outputs.append((gamma * np.sqrt(1 / MODES) * state).sum(-1))
        state = kept * state
    return np.stack(outputs, -1)


def tensors(w: dict[str, np.ndarray], path: str = "layers.0.move") -> dict[str, torch.Tensor]:
    return {f"{path}.{name}": torch.tensor(value) for name, value in w.items()}


@pytest.mark.parametrize("spelling", NAMES)
@pytest.mark.parametrize("directions", [1, 2])
def test_mega_reads_as_its_moving_average(read_model: Read, spelling: str, directions: int) -> None:
    w = weights(directions * CHANNELS)
    names = dict(zip(w, NAMES[spelling], strict=False))
    state = tensors({names[key]: value for key, value in w.items()} | {NAMES[spelling][-1]: np.zeros(CHANNELS)})
    found = read_model(state)
    kernel = average(w, w["gamma"])
    ell = np.log1p(-sigmoid(w["delta"]) * sigmoid(w["alpha"]))[..., 0]
    branches = [""] if directions == 1 else [" (forward)", " (backward)"]
    assert [r.layer for r in found] == [f"layers.0.move{branch}" for branch in branches]
    for part, recurrence in enumerate(found):
        rows = slice(part * CHANNELS, (part + 1) * CHANNELS)
        np.testing.assert_allclose(recurrence.log_eigenvalues.numpy(), ell[rows], rtol=RELATIVE["float64"])
        np.testing.assert_allclose(stepped_kernel(recurrence, LAGS)[0].numpy(), kernel[rows], rtol=1e-10, atol=1e-13)
        assert (recurrence.spelling, recurrence.kernel_factor) == (spelling, 1.0)
        assert recurrence.weights[0].values.shape == (CHANNELS, MODES)


def test_a_slow_average_keeps_its_rate(read_model: Read) -> None:
    w = weights(CHANNELS)
    w["delta"][:] = -40.0
    w["alpha"][:] = -1.0
    (found,) = read_model(tensors(w | {"omega": np.zeros(CHANNELS)}))
    np.testing.assert_allclose(found.rate.numpy(), sigmoid(-40.0) * sigmoid(-1.0), rtol=RELATIVE["float64"])


def test_truncation_in_the_settings_is_mentioned(read_model: Read) -> None:
    (found,) = read_model(tensors(weights(CHANNELS) | {"omega": np.zeros(CHANNELS)}), {"truncation": 1024})
    assert "the kernel is cut off after 1,024 lags" in found.notes


def test_rows_that_fit_no_direction_are_an_error(read_model: Read) -> None:
    with pytest.raises(LayerError, match="12 rows of outputs for 4"):
        read_model(tensors(weights(12) | {"omega": np.zeros(CHANNELS)}))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("efficient", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_ema_kernel_rows_run_over_directions_copies_and_channels(
    read_model: Read, efficient: bool, tied: bool, copies: int, bidirectional: bool
) -> None:
    """S4's block reshapes kernels to (direction, copy, channel); with one set of rows they share λ."""
    outputs = (1 + bidirectional) * copies * CHANNELS
    w = weights(CHANNELS if efficient else outputs, outputs, tied)
    state = tensors(w, "layer.kernel") | {"layer.D": torch.zeros(copies, CHANNELS)}
    found = read_model(state)
    assert len(found) == 1 + bidirectional
    wide = {k: np.tile(v, (outputs // len(v), 1, 1)) if k != "gamma" else v for k, v in w.items()}
    kernel = average(wide, w["gamma"]).reshape(1 + bidirectional, copies * CHANNELS, LAGS)
    for recurrence, expected in zip(found, kernel, strict=True):
        own = stepped_kernel(recurrence, LAGS).flatten(0, 1).numpy()
        np.testing.assert_allclose(own, expected, rtol=1e-10, atol=1e-13)


def test_ema_kernel_without_its_block_says_that_directions_are_unknown(read_model: Read) -> None:
    (found,) = read_model(tensors(weights(CHANNELS), "kernel"))
    assert any("two directions would be read as one" in note for note in found.notes)


def test_megalodon_rotates_each_mode_by_a_multiple_of_the_channel_angle(read_model: Read) -> None:
    rng = np.random.default_rng(5)
    alpha, delta = rng.normal(size=(2, CHANNELS, MODES, 1))
    theta, gamma = rng.normal(size=(CHANNELS, 1, 1)), rng.normal(size=(CHANNELS, MODES, 2))
    w = {"alpha": alpha, "delta": delta, "theta": theta, "gamma": gamma, "omega": rng.normal(size=(CHANNELS, 1))}
    (found,) = read_model(tensors(w, "layers.0.mega.cema"))
    angle = np.arange(1, MODES + 1) * (2 * np.pi / MODES) * sigmoid(theta)[..., 0]
    radius = 1 - (sigmoid(alpha) * sigmoid(delta))[..., 0]
    rotation = radius * np.cos(angle) + 1j * radius * np.sin(angle)
    np.testing.assert_allclose(found.log_eigenvalues.exp().numpy(), rotation, rtol=RELATIVE["float64"])
    state, kernel = sigmoid(alpha)[..., 0].astype(complex), []
    for _ in range(LAGS):
        kernel.append((state * (gamma[..., 0] + 1j * gamma[..., 1])).sum(-1).real / np.sqrt(MODES))
        state = state * rotation
    np.testing.assert_allclose(stepped_kernel(found, LAGS)[0].numpy(), np.stack(kernel, -1), rtol=1e-10, atol=1e-13)
    assert found.family == "megalodon"
