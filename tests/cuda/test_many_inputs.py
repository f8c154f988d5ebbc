"""Layers with many inputs on one state: every route to their energies, where modes cancel too, on either device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ssmdiag.assessment.memory import assess_memories
from ssmdiag.kernel import kernel
from ssmdiag.kernel.energy import band_energy, horizon, tail_energy
from ssmdiag.kernel.kernel import compute_kernel, sample_kernel
from ssmdiag.recurrence.modal import Recurrence
from tests.cuda.same import SINGLE, TOLERANCE, assert_close, assert_same
from tests.kernel.many_inputs import KINDS, many_inputs

EDGES = [0, 1, 2, 5, 10, 20, 40, 80, 160, 1000, 5000]


def moved(recurrence: Recurrence, device: str) -> Recurrence:
    B, C = recurrence.input_matrix, recurrence.output_matrix
    assert B is not None
    assert C is not None
    ell = recurrence.log_eigenvalues.to(device)
    return replace(recurrence, log_eigenvalues=ell, input_matrix=B.to(device), output_matrix=C.to(device))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "on the boundary"])
def test_energies_horizons_and_kernels(kind: str, cuda: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = many_inputs("ring" if kind == "on the boundary" else kind, inputs=20)
    if kind == "on the boundary":
        home.log_eigenvalues.real[0, :2] = 0
    away = moved(home, cuda)
    # Horizons of 10⁹ steps, and what is left of modes that cancel, have no ten digits.
    tolerance = 1e-6 if kind in ("boundary", "cancelling to 1e-4", "cancelling to 1e-6") else TOLERANCE
    monkeypatch.setattr(kernel, "WORKING_SET", 4096)
    for ask in (
        lambda r: horizon(r, max_lag=2**40),
        lambda r: tail_energy(r, [0, 3, 300]),
        lambda r: band_energy(r, EDGES),
        lambda r: compute_kernel(r, 50, product=torch.float64),
        lambda r: sample_kernel(r, [0, 1, 40]),
        lambda r: assess_memories([r, r], 256),
    ):
        assert_same(ask(away), ask(home), tolerance=tolerance)
    single = compute_kernel(away, 50, product=torch.float32)
    assert_close(single.values.cpu(), compute_kernel(home, 50).values, tolerance=SINGLE)
