"""Hankel singular values: how many states a time-invariant layer really uses.

The state is all that the future output knows of the past input, H_{st} = K_{s+t}. In the orthonormal basis of
`orthonormal`, λ̄_n^t = Σ_k φ_k(t) L_nk, the infinite H is a small matrix with the same singular values:

    H = Σ_n C_n B̄_n λ̄_n^{s+t}    →    M = (Lᵀ diag(C)) (Lᵀ diag(B̄))ᵀ

so no Gramian is multiplied out and small values keep float64's absolute accuracy, not its square root. Keeping k states
loses at best Σ_{i>k} σ_i² of the energy Σ σ_i² that passes from past to future (Eckart & Young, 1936), and balanced
truncation errs by at most 2 Σ_{i>k} σ_i at any frequency (Enns, 1984; Glover, 1984).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmdiag.capacity.reconstruction import each_chunk
from ssmdiag.cores import one_thread, singular_values, triangular
from ssmdiag.kernel.dense import realise
from ssmdiag.kernel.gramian import gramian_factor, triangle
from ssmdiag.kernel.orthonormal import orthonormal_factor
from ssmdiag.kernel.powers import UNDERFLOW
from ssmdiag.kernel.response import modal_terms, on_parts
from ssmdiag.kernel.status import Status, channel_status
from ssmdiag.kernel.tangential import narrowed, tangential_factor
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import Recurrence


@dataclass(frozen=True, eq=False)
class HankelSpectrum:
    """Singular values of the map from past inputs to future outputs, of every channel."""

    values: Tensor
    """σ, (channel, state) float64, descending; NaN where the status says why, inf with a mode on the boundary."""
    status: Tensor
    """`Status` of each channel, (channel,) uint8."""

    @property
    def lost(self) -> Tensor:
        """Share of the energy from past to future that keeping k = 0, 1, … states loses at best, (channel, k)."""
        energy = self.values.square()
        tail = energy.flip(1).cumsum(1).flip(1)
        tail = torch.cat([tail, torch.zeros_like(tail[:, :1])], 1)
        return tail / tail[:, :1].where(tail[:, :1] > 0, 1.0)

    @property
    def error_bound(self) -> Tensor:
        """2 Σ_{i>k} σ_i, what balanced truncation to k states errs by at most at any frequency, (channel, k)."""
        tail = 2 * self.values.flip(1).cumsum(1).flip(1)
        return torch.cat([tail, torch.zeros_like(tail[:, :1])], 1)

    def states_for(self, share: float = 0.999) -> Tensor:
        """Return how few states pass on this share of the energy, (channel,) float64; NaN where it is not known.

        Raises ValueError unless 0 < share < 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        count = (self.lost > 1 - share).sum(1).double()
        return count.where(self.values.isfinite().all(1), torch.nan)


@one_thread()
def hankel_singular_values(recurrence: Recurrence) -> HankelSpectrum:
    """Return σ of every channel; of a layer with many inputs and outputs on one state, of all of them together.

    Copies of C are outputs of the same channel. Raises ValueError for a selective layer, which has no kernel, and
    where B or C is not in the weights.
    """
    if not recurrence.time_invariant:
        raise ValueError(
            f"{module_name(recurrence.layer)} is selective: it has no Hankel operator; "
            "`memory_function` knows its modes"
        )
    recurrence = realise(recurrence)
    status = channel_status(recurrence)
    usable = (status == Status.KNOWN) | (status == Status.ZERO)
    if recurrence.layout == "many inputs":
        parts = [_matrix(recurrence)] if bool(usable.all()) else [status.new_zeros(1, recurrence.modes).double()]
    else:
        values_of = _finite if recurrence.taps is not None else _modal if recurrence.dense is None else _dense
        parts = each_chunk(recurrence, 0, lambda chunk: values_of(recurrence, chunk, usable[chunk]))
    width = max(part.shape[1] for part in parts)
    values = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
    values = values.where(usable[:, None], torch.nan).where((status != Status.BOUNDARY)[:, None], torch.inf)
    return HankelSpectrum(values, status)


def _modal(recurrence: Recurrence, chunk: slice, usable: Tensor) -> Tensor:
    """The same with all weight on one side, w = C B̄: M = Lᵀ diag(w) L, copies of it below each other."""
    ell, weights = modal_terms(recurrence, chunk, usable)
    factor = orthonormal_factor(ell)
    columns = on_parts(factor).mT
    rows = columns[:, :0]
    for copy in range(weights.shape[1]):
        weighted = factor * weights[:, copy, None]
        if weighted.is_complex():  # M = Re(Lᵀ diag(w) L) in a real basis
            weighted = torch.cat([weighted.real, weighted.imag], -1)
        rows = triangle(torch.cat([rows, weighted @ columns], 1))
    return singular_values(rows)


def _finite(recurrence: Recurrence, chunk: slice, usable: Tensor) -> Tensor:
    """The same of a convolution: H itself, of as many rows and columns as taps, the copies below each other."""
    assert recurrence.taps is not None
    taps = recurrence.taps[:, chunk].movedim(0, 1).where(usable[:, None, None], 0.0)
    lags = taps.shape[2]
    rows = torch.nn.functional.pad(taps, (0, lags - 1)).unfold(2, lags, 1)
    return singular_values(triangle(rows.flatten(1, 2)))


def _dense(recurrence: Recurrence, chunk: slice, usable: Tensor) -> Tensor:
    assert recurrence.dense is not None
    dense = recurrence.dense()
    A = dense.state_matrix[chunk].where(usable[:, None, None], 0.0)
    B = dense.input_matrix[chunk].where(usable[:, None], 0.0)
    C = dense.output_matrix[:, chunk].movedim(0, 1).where(usable[:, None, None], 0.0)
    reach, _ = gramian_factor(A, B[..., None])
    observe, _ = gramian_factor(A.mT, C.mT)
    return singular_values(observe @ reach.mT)


def _matrix(recurrence: Recurrence) -> Tensor:
    """The same of a kernel matrix, over the real and imaginary parts of its modes."""
    B, C = recurrence.input_matrix, recurrence.output_matrix
    assert B is not None
    assert C is not None
    ell = recurrence.log_eigenvalues[0]
    reaches = (B != 0).any(1) & (C != 0).any(0)
    order = (-ell.real).argsort(stable=True)
    order = order[reaches[order]]
    ell, B, C = ell[order], B[order], C[:, order]
    ell = torch.complex(ell.real.clamp(min=-UNDERFLOW), ell.imag)
    # y = κ Re(C h) reads the modes and their conjugates, at half the weight each.
    observe = _over_parts(ell, recurrence.kernel_factor / 2 * C, 1j)
    reach = _over_parts(ell, B.mT / 2, -1j)
    return singular_values((observe @ reach.mT)[None])


def _over_parts(ell: Tensor, columns: Tensor, turn: complex) -> Tensor:
    """Return X of Σ_t ‖columns Λ^t h‖² = ‖X (Re h; Im h)‖², h with its conjugate; `turn` −i for what reaches 2 h."""
    columns = narrowed(columns)
    both = torch.stack([ell, ell.conj()], 1).flatten()
    F = tangential_factor(both, torch.stack([columns, columns.conj()], 2).flatten(1))
    own, other = F[:, 0::2], F[:, 1::2]
    rows = torch.cat([own + other, turn * (own - other)], 1)
    return triangular(torch.cat([rows.real, rows.imag]))
