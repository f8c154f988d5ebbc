"""Stored long convolutions against the arithmetic of their modules: a spectrum of twice the length, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmdiag import diagnose
from ssmdiag.errors import LayerError
from ssmdiag.recurrence.modal import Recurrence

Read = Callable[..., list[Recurrence]]
COPIES, CHANNELS, LENGTH = 2, 3, 16


def safari(copies: int = COPIES, length: int = LENGTH) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    path = "model.layers.0.layer"
    return {
        f"{path}.kernel.kernel": torch.from_numpy(0.01 * rng.normal(size=(copies, CHANNELS, length))),
        f"{path}.D": torch.from_numpy(rng.normal(size=(COPIES, CHANNELS))),
    }


def standalone() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(1)
    path = "conv_layers.0"
    return {
        f"{path}.kernel": torch.from_numpy(0.2 * rng.normal(size=(COPIES, CHANNELS, 2 * LENGTH))),
        f"{path}.D": torch.from_numpy(rng.normal(size=(COPIES, CHANNELS))),
        f"{path}.output_linear.0.weight": torch.from_numpy(rng.normal(size=(2 * CHANNELS, COPIES * CHANNELS))),
    }


def squashed(kernel: np.ndarray, lam: float) -> np.ndarray:
    return np.maximum(np.abs(kernel) - lam, 0) * np.sign(kernel)


def responses(kernel: np.ndarray, at: int) -> np.ndarray:
    """Return the output over time to an impulse at one time, (copy, channel, time), as the modules' FFT gives it."""
    impulse = np.zeros((1, CHANNELS, LENGTH))
    impulse[..., at] = 1
    size = 2 * LENGTH
    return np.fft.irfft(np.fft.rfft(kernel, size) * np.fft.rfft(impulse, size), size)[..., :LENGTH]


def test_taps_are_squashed_as_the_settings_say(read_model: Read) -> None:
    state = safari()
    (found,) = read_model(state, {"lam": 0.004})
    assert found.taps is not None
    expected = responses(squashed(state["model.layers.0.layer.kernel.kernel"].numpy(), 0.004), 0)
    np.testing.assert_allclose(found.taps.numpy(), expected, atol=1e-15)
    assert not any("assumed" in note for note in found.notes)


def test_a_threshold_that_nothing_states_is_said_to_be_assumed(read_model: Read) -> None:
    (found,) = read_model(safari())
    assert [(one.option, one.value, one.source) for one in found.assumptions] == [("lam", "0.003", "usual")]
    assert any(note.startswith("assumed: lam = 0.003") for note in found.notes)


def test_it_can_be_set_and_not_below_zero(read_model: Read, tmp_path: Path) -> None:
    (found,) = read_model(safari(), lam="0")
    assert found.taps is not None
    assert torch.equal(found.taps, safari()["model.layers.0.layer.kernel.kernel"])


def test_a_threshold_below_zero_is_refused(read_model: Read) -> None:
    with pytest.raises(LayerError, match="lam is -1"):
        read_model(safari(), lam="-1")


@pytest.mark.parametrize("at", [0, 5, LENGTH - 1])
def test_the_standalone_kernel_reads_past_and_future(at: int, read_model: Read) -> None:
    """Stored at twice its length, its convolution is circular: the second half of it runs backwards."""
    state = standalone()
    forward, backward = read_model(state, {"kernel_lam": 0.05})
    assert forward.taps is not None
    assert backward.taps is not None
    assert (forward.layer, backward.layer) == ("conv_layers.0 (forward)", "conv_layers.0 (backward)")
    expected = responses(squashed(state["conv_layers.0.kernel"].numpy(), 0.05), at)
    rebuilt = np.zeros_like(expected)
    for time in range(LENGTH):
        side = forward.taps if time >= at else backward.taps
        rebuilt[..., time] = side[..., abs(time - at)].numpy()
    np.testing.assert_allclose(rebuilt, expected, atol=1e-15)


def test_twice_the_copies_are_two_directions(read_model: Read) -> None:
    state = safari(copies=2 * COPIES)
    forward, backward = read_model(state, lam="0")
    kernel = state["model.layers.0.layer.kernel.kernel"]
    assert forward.taps is not None
    assert backward.taps is not None
    assert torch.equal(forward.taps, kernel[:COPIES])
    assert torch.equal(backward.taps, kernel[COPIES:])


def test_a_moving_average_comes_before_the_threshold(read_model: Read) -> None:
    state = safari()
    kernel = state["model.layers.0.layer.kernel.kernel"]
    (found,) = read_model(state, {"use_ma_smoothing": True, "ma_window_len": 5, "lam": 0.001})
    smooth = torch.nn.AvgPool1d(5, stride=1, padding=2)(kernel)
    assert found.taps is not None
    np.testing.assert_allclose(found.taps.numpy(), squashed(smooth.numpy(), 0.001), atol=1e-16)


def test_a_smoothed_spectrum_is_not_read(read_model: Read) -> None:
    with pytest.raises(LayerError, match="smooth_freq"):
        read_model(safari(), {"use_ma_smoothing": True, "smooth_freq": True})


def test_other_copies_than_of_d_are_refused(read_model: Read) -> None:
    with pytest.raises(LayerError, match="3 copies of its kernel beside 2 of D"):
        read_model(safari(copies=3))


def test_its_law_is_that_of_its_taps(write_model: Callable[..., Path]) -> None:
    lags = torch.arange(1024, dtype=torch.float64)
    kernel = ((1 + lags / 2) ** -0.7).expand(1, 8, -1)
    state = {"layers.0.kernel.kernel": kernel.float(), "layers.0.D": torch.ones(1, 8)}
    result = diagnose(write_model(state, {"lam": 0.0, "l_max": 1024}))
    (layer,) = result.layers
    assert layer.decay is not None
    assert layer.decay.law == ("polynomial", (0, 1023))
    assert layer.decay.whole.exponent == pytest.approx(0.7, abs=0.01)
    assert layer.horizon is not None
    assert layer.horizon.max == 1023
    assert (layer.taps, result.problems) == (1024, ())
