"""State matrices that must not be diagonalised, built once, as real matrices.

    Ā^t B̄ = Π_k (Ā^{2^k})^{t_k} B̄,     t = Σ_k t_k 2^k

The eigenvectors of HiPPO matrices have condition numbers beyond 10¹⁹; squaring the matrix does not use them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ssmdiag.cores import triangular
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

LEAST = 1e-150
"""Entries of powers and states below which they count as zero."""


def realise(recurrence: Recurrence) -> Recurrence:
    """Return the recurrence with its dense realisation, if it has one, built and with a real state.

    Solving for Ā takes longer than most computations with it: build it once and reuse the result.
    """
    if recurrence.dense is None:
        return recurrence
    built = on_real_state(recurrence.dense())
    return replace(recurrence, dense=lambda: built)


def on_real_state(dense: DenseRealisation) -> DenseRealisation:
    """Return the same response in float64: with the state itself where it is real, else with (Re x, Im x)."""
    A, B, C = dense.state_matrix, dense.input_matrix, dense.output_matrix
    if not A.is_complex():
        return dense
    if not bool(A.imag.any() or B.imag.any()):
        return DenseRealisation(A.real.contiguous(), B.real.contiguous(), C.real.contiguous())
    A = torch.cat([torch.cat([A.real, -A.imag], -1), torch.cat([A.imag, A.real], -1)], -2)
    return DenseRealisation(A, torch.cat([B.real, B.imag], -1), torch.cat([C.real, -C.imag], -1))


def times(A: Tensor, right: Tensor) -> Tensor:
    """Return A @ right, with entries set to 0 where their products would be subnormal.

    A product of subnormal numbers takes a hundred times as long.
    """
    product = A @ right
    return product.where(product.abs() > LEAST, 0.0)


def states_at(dense: DenseRealisation, lags: Tensor) -> Tensor:
    """Return Ā^t B̄, (channel, state, lag), by the binary digits of t."""
    square = dense.state_matrix
    states = dense.input_matrix[..., None].expand(*dense.input_matrix.shape, len(lags)).clone()
    digits = lags.long()
    while bool(digits.any()):
        odd = (digits % 2 == 1).nonzero()[:, 0]
        states[..., odd] = times(square, states[..., odd])
        digits = digits // 2
        if bool(digits.any()):
            square = times(square, square)
    return states


def energy_between(dense: DenseRealisation, first: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ |CĀ^t B̄|² over first ≤ t < first + width, (channel, bin), and the same with every entry's modulus.

    Sums 2^k lags at a time, by the binary digits of the widths, so that tails may be infinite. `dense` is real;
    the second value, times the number of operations, bounds the rounding error of the first.
    """
    square, state = dense.state_matrix, states_at(dense, first)
    rows = dense.output_matrix.movedim(0, 1)  # (channel, row, state): ‖rows x‖² is the energy of 2^k lags from x on
    values = state.new_zeros(len(state), len(first))
    bound, digits = values.clone(), width.long()
    while bool(digits.any()):
        odd = (digits % 2 == 1).nonzero()[:, 0]
        values[:, odd] += times(rows, state[..., odd]).square().sum(1)
        bound[:, odd] += times(rows.abs(), state[..., odd].abs()).square().sum(1)
        state[..., odd] = times(square, state[..., odd])
        digits = digits // 2
        if bool(digits.any()):
            rows = triangular(torch.cat([rows, times(rows, square)], 1))
            square = times(square, square)
    return values, bound


def krylov(A: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return (start, A·start, …, A^{n−1}·start) with n ≥ count a power of two, and A^n.

    `A` (…, state, state), `start` (…, state, 1); the states come as (…, state, n).
    """
    states = start
    while states.shape[-1] < count:
        states = torch.cat([states, times(A, states)], -1)
        A = times(A, A)
    return states, A
