"""Triangular factors of Gramians, by a doubling iteration on the factor itself.

    P = Σ_t A^t B Bᴴ A^tᴴ = Xᴴ X:     X ← triangle of [X; X (A^{2^k})ᴴ],  k = 0, 1, 2, …

Forming P would lose half the digits, since P is the square of the factor. No eigenvector is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmdiag.cores import triangular

DOUBLINGS = 64
"""2⁶⁴ steps: the state of a mode 1e-15 from the boundary vanishes long before."""
GONE = 1e-18
"""Share of the factor below which a doubling adds nothing."""


def gramian_factor(state_matrix: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return X (channel, rows, state), XᴴX = P, and whether the sum converged, (channel,) bool.

    `state_matrix` A (channel, state, state), `start` B (channel, state, input). X is zero where it did not converge.
    """
    rows, power = start.mH, state_matrix
    done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for _ in range(DOUBLINGS):
        more, power = rows @ power.mH, power @ power
        done = done | ~(more.abs().amax((1, 2)) > GONE * rows.abs().amax((1, 2)))
        done = done & more.isfinite().flatten(1).all(1)
        if bool(done.all()):
            break
        rows = triangle(torch.cat([rows, more], 1))
    finite = rows.isfinite().flatten(1).all(1)
    return rows.where((done & finite)[:, None, None], 0.0), done & finite


def triangle(rows: Tensor) -> Tensor:
    """Return R of the QR factorisation of (…, row, column), or the rows themselves while they are few."""
    return rows if rows.shape[-2] <= rows.shape[-1] else triangular(rows)
