"""The slow reference: a recurrence stepped one lag after another in complex128."""

from __future__ import annotations

import torch

from ssmdiag.recurrence.modal import Recurrence


def stepped_kernel(recurrence: Recurrence, lags: int) -> torch.Tensor:
    """Return K_t, (copy, channel, lag) float64: the response of κ Re(C h), h ← λ̄ h + B̄ x, to an impulse.

    Of a convolution, the response of its taps on a window of the last inputs that moves on by one.
    """
    if recurrence.taps is not None:
        window, rows = torch.zeros_like(recurrence.taps[0]), []
        for lag in range(lags):
            window = torch.cat([torch.full_like(window[:, :1], float(lag == 0)), window[:, :-1]], 1)
            rows.append((recurrence.taps * window).sum(2))
        return torch.stack(rows, -1)
    if recurrence.dense is not None:
        dense = recurrence.dense()
        state, output = dense.input_matrix, dense.output_matrix
        rows = []
        for _ in range(lags):
            rows.append(torch.einsum("chn,hn->ch", output, state).real)
            state = torch.einsum("hmn,hn->hm", dense.state_matrix, state)
        return torch.stack(rows, -1)
    assert recurrence.input_matrix is not None
    assert recurrence.output_matrix is not None
    decay = recurrence.log_eigenvalues.exp()
    state = recurrence.input_matrix.expand(decay.shape)
    rows = []
    for _ in range(lags):
        rows.append(recurrence.kernel_factor * torch.einsum("chn,hn->ch", recurrence.output_matrix, state).real)
        state = decay * state
    return torch.stack(rows, -1)


def stepped_matrix_kernel(recurrence: Recurrence, lags: int) -> torch.Tensor:
    """Return K_t, (lag, output, input) float64, of a layer with many inputs and outputs on one state."""
    assert recurrence.input_matrix is not None
    assert recurrence.output_matrix is not None
    decay = recurrence.log_eigenvalues.exp().mT
    state, rows = recurrence.input_matrix, []
    for _ in range(lags):
        rows.append(recurrence.kernel_factor * (recurrence.output_matrix @ state).real)
        state = decay * state
    return torch.stack(rows)


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest difference, in units of the largest reference value."""
    return float((value - reference).abs().max() / reference.abs().max())
