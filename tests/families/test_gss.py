"""GSS against its kernel as its module computes it, in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ssmdiag.recurrence.modal import Recurrence
from tests.reference import relative_error, stepped_kernel

CHANNELS, MODES, LAGS = 5, 7, 60


@pytest.mark.parametrize("slow", [0.0, -16.0])
def test_the_kernel_is_that_of_the_original(slow: float, read_model: Callable[..., list[Recurrence]]) -> None:
    rng = np.random.default_rng(0)
    w = {
        "Lambda_real": rng.normal(size=MODES) - 1 + slow,
        "Lambda_imag": rng.normal(size=MODES),
        "C_real": rng.normal(size=(CHANNELS, MODES)),
        "C_imag": rng.normal(size=(CHANNELS, MODES)),
        "param_D": rng.normal(size=CHANNELS),
    }
    (found,) = read_model({f"layers.0.0.dss.{name}": torch.from_numpy(value) for name, value in w.items()})
    eigenvalues = -np.exp(w["Lambda_real"]) + 1j * np.exp(w["Lambda_imag"])
    C = (w["C_real"] + 1j * w["C_imag"]) * (np.exp(eigenvalues) - 1) / eigenvalues
    kernel = (C @ np.exp(eigenvalues[:, None] * np.arange(LAGS))).real
    assert relative_error(stepped_kernel(found, LAGS), torch.from_numpy(kernel)[None]) < 1e-12
    np.testing.assert_allclose(found.rate[0].numpy(), np.exp(w["Lambda_real"]), rtol=1e-14)
    assert (found.family, found.layer, found.channels, found.modes) == ("gss", "layers.0.0.dss", CHANNELS, MODES)
