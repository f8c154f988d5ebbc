"""An orthonormal realisation of a spectrum: a cascade of all-pass sections, one for each mode.

    x_k ← λ̄_k x_k + g_k v_k,   v_{k+1} = −λ̄_k* v_k + g_k x_k (before),   v_0 = input,   g_k = √(1 − |λ̄_k|²)

With all x as the state, A Aᴴ + b bᴴ = I: white input makes the states white, and what a linear readout can
know of the input t steps ago is ‖A^t b‖² (Takenaka, 1925; Malmquist, 1926). [A b; c d] is unitary, so that every
step passes |c x|² on to the output v_N: ‖A^t b‖² = Σ_{j>t} |β_j|², with β_0 = d, β_j = c A^{j−1} b.

A dense state matrix is brought to the same form by a factor of its Gramian, without eigenvectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ssmdiag.kernel.gramian import gramian_factor
from ssmdiag.kernel.powers import powers

if TYPE_CHECKING:
    from torch import Tensor

    from ssmdiag.recurrence import DenseRealisation

SMALL = 24
"""States up to which channels are multiplied side by side: a batch of such small products is slow, and half zeros."""
LARGE = 128
"""States from which triangular products are split."""
KEPT = 2**30
"""Bytes of powers of A that are kept."""
REACHED = 1e-13
"""Share of the largest direction of a dense state below which another cannot be told from rounding."""


@dataclass(frozen=True, eq=False)
class Cascade:
    """Orthonormal realisations of some channels: A Aᴴ + b bᴴ = I on the states that count."""

    state_matrix: Tensor
    """A, (channel, state, state)."""
    entry: Tensor
    """b, (channel, state, 1)."""
    exit: Tensor
    """c, (channel, 1, state)."""
    direct: Tensor
    """d, (channel,)."""
    counted: Tensor
    """Which states hold anything, (channel, state) bool; the others are zero and stay it."""
    log_eigenvalues: Tensor | None = None
    """ℓ on the diagonal of a lower triangular A, (channel, state); None for a dense one."""
    _squares: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def modes(self) -> Tensor:
        """Number of states that hold anything, (channel,) int64."""
        return self.counted.sum(1)

    def square(self, doublings: int) -> Tensor:
        """Return A^t at t = 2^doublings, (channel, state, state); those on the way are kept while they are small."""
        kept = self._squares
        bit = max((bit for bit in kept if bit <= doublings), default=0)
        found = kept.get(bit, self.state_matrix)
        while bit < doublings:
            bit += 1
            found = self._exact(self.times(found, found, lower=True), 2**bit)
            if (len(kept) + 1) * found.numel() * found.element_size() > KEPT:
                kept.clear()
            kept[bit] = found
        return found

    def times(self, power: Tensor, columns: Tensor, *, lower: bool = False) -> Tensor:
        """Return a power of A times columns (channel, state, column); `lower`: these are a power of A too."""
        if not self._side_by_side:
            return _lower_product(power, columns) if lower and self.log_eigenvalues is not None else power @ columns
        product = self.columns(columns.shape[-1]).zero_()
        for k in range(power.shape[-1]):
            width = k + 1 if lower else columns.shape[-1]
            product[:, k:, :width].addcmul_(power[:, k:, k : k + 1], columns[:, k : k + 1, :width])
        return product

    def rows_times(self, rows: Tensor, power: Tensor) -> Tensor:
        """Return rows (channel, row, state) times a power of A."""
        if not self._side_by_side:
            return rows @ power
        product = self.columns(rows.shape[1]).mT.zero_()
        for k in range(power.shape[-1]):
            product[:, :, : k + 1].addcmul_(rows[:, :, k : k + 1], power[:, k : k + 1, : k + 1])
        return product

    def columns(self, count: int) -> Tensor:
        """Return room for columns (channel, state, column), laid out as products are."""
        channels, states = self.counted.shape
        if self._side_by_side:
            return self.entry.new_empty(states, count, channels).permute(2, 0, 1)
        return self.entry.new_empty(channels, states, count)

    @property
    def _side_by_side(self) -> bool:
        """Whether channels lie side by side in memory, which pays where products are small."""
        return self.log_eigenvalues is not None and self.counted.shape[1] <= SMALL

    def _exact(self, power: Tensor, lag: int) -> Tensor:
        """Set the diagonal of A^t to λ̄^t: made by squaring, it would lose as many digits as t has."""
        ell = self.log_eigenvalues
        if ell is not None:
            at = torch.as_tensor(float(lag), dtype=torch.float64, device=ell.device)
            values = powers(ell, at) if ell.is_complex() else (ell * at).exp()
            power.diagonal(dim1=1, dim2=2).copy_(values.where(self.counted, 0.0))
        return power

    def states_at(self, lags: Tensor) -> Tensor:
        """Return A^t b, (channel, state, lag), for whole float64 lags (lag,), by the binary digits of t."""
        states = self.entry.expand(*self.entry.shape[:2], len(lags)).clone()
        digits, bit = lags.long(), 0
        while bool(digits.any()):
            odd = (digits % 2 == 1).nonzero()[:, 0]
            if len(odd):
                states[..., odd] = self.times(self.square(bit), states[..., odd])
            digits, bit = digits // 2, bit + 1
        return states

    def power(self, lag: int) -> Tensor:
        """Return A^t for t ≥ 1, (channel, state, state)."""
        product: Tensor | None = None
        reached = 0
        for bit in range(lag.bit_length()):
            if lag >> bit & 1:
                square, reached = self.square(bit), reached + (1 << bit)
                product = square if product is None else self._exact(self.times(product, square, lower=True), reached)
        if product is None:
            raise ValueError(f"a power of A is for lags of at least one step, got {lag}")
        return product


def cascade_of(log_eigenvalues: Tensor, counted: Tensor) -> Cascade:
    """Return the cascade of ℓ (channel, mode), all with Re ℓ < 0; modes that do not count hold nothing.

    Equal modes are two sections one after the other: the limit of modes that approach each other.
    """
    ell = log_eigenvalues
    channels, modes = ell.shape
    # Channels last: slices of modes are then contiguous.
    here = counted.T
    gain = (-(2 * ell.T.real).expm1()).sqrt() * here
    decay = ell.T.exp() * here
    through = (-decay.conj()).where(here, 1.0)
    rows = ell.new_zeros(modes + 1, modes + 1, channels)
    signal = rows[modes]  # v_k as a sum over states and, last, the input
    signal[modes] = 1
    for k in range(modes):
        torch.mul(signal, gain[k], out=rows[k])
        rows[k, k] = decay[k]
        signal[:k] *= through[k]
        signal[modes] *= through[k]
        signal[k] = gain[k]
    unitary = rows.permute(2, 0, 1)
    if modes > SMALL:
        unitary = unitary.contiguous()
    n = modes
    return Cascade(
        state_matrix=unitary[:, :n, :n],
        entry=unitary[:, :n, n:],
        exit=unitary[:, n:, :n],
        direct=unitary[:, n, n],
        counted=counted,
        log_eigenvalues=ell,
    )


def dense_cascade(dense: DenseRealisation) -> tuple[Cascade, Tensor]:
    """Return the orthonormal realisation of dense state matrices, and which channels have one, (channel,) bool.

    With P = XᴴX the Gramian and X = U Σ Vᴴ, the state in the basis V Σ is white. Directions that the input does
    not reach, to float64's digits, hold nothing; so does a state whose Gramian does not end.
    """
    A, B = dense.state_matrix, dense.input_matrix[..., None]
    factor, converged = gramian_factor(A, B)
    _, values, basis = torch.linalg.svd(factor, full_matrices=False)
    counted = values > REACHED * values[:, :1]
    values = values.where(counted, 1.0)
    keep = counted[..., None]
    state_matrix = (basis @ A @ basis.mH * values[:, None] / values[..., None]).where(keep & keep.mT, 0.0)
    entry = (basis @ B / values[..., None]).where(keep, 0.0)
    # What is left of one dimension more when the rows of [A b] are taken out is the row [c d].
    rows = torch.cat([state_matrix, entry], -1)
    rest = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device) - rows.mH @ rows
    rest.diagonal(dim1=1, dim2=2)[:, :-1] *= counted
    size, pick = rest.diagonal(dim1=1, dim2=2).real.max(1)
    last = rest.gather(1, pick[:, None, None].expand(-1, 1, rest.shape[-1])) / size.sqrt()[:, None, None]
    last[:, :, :-1] *= counted[:, None]
    cascade = Cascade(state_matrix, entry, last[:, :, :-1], last[:, 0, -1], counted)
    return cascade, converged


def _lower_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two lower triangular matrices, a third of the work of any others."""
    size = left.shape[-1]
    if size <= LARGE:
        return left @ right
    half = size // 2
    product = torch.zeros_like(left)
    product[:, :half, :half] = _lower_product(left[:, :half, :half], right[:, :half, :half])
    product[:, half:, half:] = _lower_product(left[:, half:, half:], right[:, half:, half:])
    product[:, half:, :half] = left[:, half:] @ right[:, :, :half]
    return product
