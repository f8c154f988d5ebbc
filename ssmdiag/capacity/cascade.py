"""An orthonormal realisation of a spectrum: a cascade of all-pass sections, one for each mode.

    x_k ← λ̄_k x_k + g_k v_k,   v_{k+1} = −λ̄_k* v_k + g_k x_k (before),   v_0 = input,   g_k = √(1 − |λ̄_k|²)

With all x as the state, A Aᴴ + b bᴴ = I: white input makes the states white, and what a linear readout can
know of the input t steps ago is ‖A^t b‖² (Takenaka, 1925; Malmquist, 1926). [A b; c d] is unitary, so that every
step passes |c x|² on to the output v_N: ‖A^t b‖² = Σ_{j>t} |β_j|², with β_0 = d, β_j = c A^{j−1} b.

A mode and its conjugate are one section of two real states (Kautz, 1954; g² = 1 − |λ̄|²):

    A = Re λ̄ + ½ [g² q; −q −g²],   b = g/√2 (p, s)ᵀ,   c = g/√2 (p, −s),   d = |λ̄|²
    p = |1 − λ̄|,   s = |1 + λ̄|,   q = ps,   A^t = Re λ̄^t + Im λ̄^t / Im λ̄ · (A − Re λ̄)

A dense state matrix is brought to the same form by a factor of its Gramian, without eigenvectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssmdiag.capacity.full_spectrum import FullSpectrum
from ssmdiag.kernel.gramian import gramian_factor
from ssmdiag.kernel.orthonormal import around_one
from ssmdiag.kernel.powers import powers
from ssmdiag.kernel.response import square_of
from ssmdiag.recurrence.modal import DenseRealisation

LARGE = 128
"""States from which triangular products are split."""
KEPT = 2**30
"""Bytes of powers of A that are kept."""
MOST_DOUBLINGS = 52
"""Most doublings of a lag: larger whole numbers are not exact in float64."""
SUMMED = (8, 12)
"""Doublings of lags that are summed one by one rather than bisected, of few and of many states."""
REACHED = 1e-13
"""Share of the largest direction of a dense state below which another is rounding noise."""


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
    """Which states are used, (channel, state) bool; the others are zero and stay zero."""
    diagonal: Callable[[float | Tensor], Tensor] | None = None
    """The blocks (channel, section, state, state) on the diagonal of A^t, which is else lower triangular; t is one
    number, or (channel, 1)."""
    block: int = 1
    """States of a section."""
    _squares: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def modes(self) -> Tensor:
        """Number of states used, (channel,) int64."""
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
        return _lower_product(power, columns) if lower and self.diagonal is not None else power @ columns

    def _exact(self, power: Tensor, lag: float | Tensor) -> Tensor:
        """Set the blocks on the diagonal of A^t: made by squaring, they would lose as many digits as t has."""
        if self.diagonal is not None:
            blocks = self.diagonal(lag)
            for row in range(self.block):
                for column in range(self.block):
                    entries = power[:, row :: self.block, column :: self.block].diagonal(dim1=1, dim2=2)
                    entries.copy_(blocks[:, :, row, column])
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

    def lags_holding(self, shares: Sequence[float], known: int) -> Tensor:
        """Return the fewest lags L with Σ_{τ<L} MF(τ) ≥ share · N where L > 2^known, (share, channel) float64.

        As A Aᴴ + b bᴴ = I, what lies beyond is Σ_{τ≥L} MF(τ) = ‖A^L‖². L is bracketed by doubling and bisected until
        few lags are left, which are summed one by one. Past 10⁹ lags nine digits are right; inf past
        2^`MOST_DOUBLINGS`.
        """
        target = (1 - self.entry.new_tensor(shares)[:, None]) * self.modes
        left = [square_of(self.square(known)).sum((1, 2))]
        while bool((left[-1] > target).any()) and known + len(left) <= MOST_DOUBLINGS:
            left.append(square_of(self.square(known + len(left))).sum((1, 2)))
        norms = torch.stack(left)
        passed = ((norms[:, None] > target).sum(0) - 1).clamp(min=0)
        few = max((self.counted.shape[1] ** 2 // 4).bit_length(), SUMMED[0])
        few = min(few, SUMMED[1], known + int(passed.max()))
        brackets = zip(target, norms.gather(0, passed), known + passed, strict=True)
        found = [self._bisect(*bracket, few) for bracket in brackets]
        low, rest, states = (torch.stack(part) for part in zip(*found, strict=True))
        values = self._memory_from(states, few)
        more = ((rest[..., None] - values.cumsum(2))[..., :-1] > target[..., None]).sum(2)
        return (low + more + 1).where(norms[-1] <= target, torch.inf)

    def _bisect(self, target: Tensor, rest: Tensor, doublings: Tensor, few: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return an L that the fewest lags are past, by less than 2^few, with ‖A^L‖² and A^L b.

        They lie between 2^doublings, where `rest` is left, and its double; all are by channel.
        """
        first = low = 2.0 ** doublings.double()
        least, most = int(doublings.min()), int(doublings.max())
        power = self.square(least)
        for bit in range(least + 1, most + 1):
            power = torch.where((doublings == bit)[:, None, None], self.square(bit), power)
        for bit in range(most - 1, few - 1, -1):
            ahead = low + 2.0**bit
            further = self._exact(self.times(power, self.square(bit), lower=True), ahead[:, None])
            left = square_of(further).sum((1, 2))
            more = (left > target) & (first > 2.0**bit)
            low, rest = torch.where(more, ahead, low), torch.where(more, left, rest)
            power = torch.where(more[:, None, None], further, power)
        return low, rest, self.times(power, self.entry)[..., 0]

    def _memory_from(self, states: Tensor, doublings: int) -> Tensor:
        """Return ‖A^τ x‖² of states x (share, channel, state) at τ below 2^doublings, (share, channel, lag).

        It falls at every step by |c A^τ x|², a product of rows c A^{qS} and columns A^s x as in `leading_memory`.
        """
        shares, wide = len(states), (doublings + 1) // 2
        columns, rows = states.movedim(0, 2), self.exit
        for bit in range(doublings):
            square = self.square(bit)
            if bit < wide:
                columns = torch.cat([columns, self.times(square, columns)], 2)
            else:
                rows = torch.cat([rows, rows @ square], 1)
        passed = square_of(rows @ columns).unflatten(2, (-1, shares)).movedim(3, 0).flatten(2)
        rest = square_of(self.times(self.square(doublings), states.movedim(0, 2))).sum(1).T
        return rest[..., None] + passed.flip(2).cumsum(2).flip(2)


def cascade_of(spectrum: FullSpectrum) -> Cascade:
    """Return the cascade of some channels' modes, all with Re ℓ < 0.

    Equal modes are two sections one after the other: the limit of modes that approach each other.
    """
    made = _paired_sections(spectrum) if spectrum.log_eigenvalues.is_complex() else _real_sections(spectrum)
    diagonal, counted, entry, leave, direct = made
    # Channels last: slices of states are then contiguous while the sections are joined.
    blocks, entry, leave, direct = diagonal(1.0).movedim(0, 3), entry.movedim(0, 2), leave.movedim(0, 2), direct.T
    sections, block, channels = entry.shape
    n = sections * block
    rows = entry.new_zeros(n + 1, n + 1, channels)
    signal = rows[n]  # v_k as a sum over states and, last, the input
    signal[n] = 1
    for k in range(sections):
        own = slice(k * block, (k + 1) * block)
        torch.mul(signal, entry[k][:, None], out=rows[own])
        rows[own, own] = blocks[k]
        signal *= direct[k]
        signal[own] = leave[k]
    unitary = rows.permute(2, 0, 1).contiguous()
    return Cascade(
        state_matrix=unitary[:, :n, :n],
        entry=unitary[:, :n, n:],
        exit=unitary[:, n:, :n],
        direct=unitary[:, n, n],
        counted=counted,
        diagonal=diagonal,
        block=block,
    )


_Sections = tuple[Callable[["float | Tensor"], "Tensor"], "Tensor", "Tensor", "Tensor", "Tensor"]
"""Blocks of A^t, which states count, and b, c (channel, section, state) and d (channel, section) of each section."""


def _real_sections(spectrum: FullSpectrum) -> _Sections:
    ell, here = spectrum.log_eigenvalues, spectrum.counted
    gain = ((-(2 * ell).expm1()).sqrt() * here)[..., None]

    def diagonal(lag: float | Tensor) -> Tensor:
        return (ell * lag).exp().where(here, 0.0)[..., None, None]

    return diagonal, here, gain, gain, (-ell.exp()).where(here, 1.0)


def _paired_sections(spectrum: FullSpectrum) -> _Sections:
    """Return sections of two states, the second of which holds nothing where a mode is its own conjugate."""
    ell, here, paired = spectrum.log_eigenvalues, spectrum.counted, spectrum.paired
    square, above, below = -(2 * ell.real).expm1(), *(one.abs() for one in around_one(ell))
    value = powers(ell, ell.real.new_ones(()))
    cross = above * below
    turn = torch.stack([square, cross, -cross, -square], -1) / (2 * value.imag.where(paired, torch.inf))[..., None]
    counted = torch.stack([here, paired], -1)

    def diagonal(lag: float | Tensor) -> Tensor:
        power = powers(ell, torch.as_tensor(lag, dtype=torch.float64, device=ell.device))
        blocks = (power.imag[..., None] * turn).unflatten(-1, (2, 2))
        blocks.diagonal(dim1=2, dim2=3).add_(power.real[..., None] * counted)
        return blocks

    gain = (square / 2).sqrt()
    entry = torch.stack([gain * below, gain * above], -1).where(paired[..., None], 0.0)
    leave = entry * entry.new_tensor([1.0, -1.0])
    for vector in (entry, leave):
        vector[..., 0] = torch.where(here & ~paired, square.sqrt(), vector[..., 0])
    direct = torch.where(paired, (2 * ell.real).exp(), -value.real).where(here, 1.0)
    return diagonal, counted.flatten(1), entry, leave, direct


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
    # The row [c d] spans what the rows of [A b] leave of a space with one more dimension.
    rows = torch.cat([state_matrix, entry], -1)
    rest = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device) - rows.mH @ rows
    rest.diagonal(dim1=1, dim2=2)[:, :-1] *= counted
    size, pick = rest.diagonal(dim1=1, dim2=2).real.max(1)
    last = rest.gather(1, pick[:, None, None].expand(-1, 1, rest.shape[-1])) / size.sqrt()[:, None, None]
    last[:, :, :-1] *= counted[:, None]
    return Cascade(state_matrix, entry, last[:, :, :-1], last[:, 0, -1], counted), converged


def _lower_product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two lower triangular matrices of blocks of two, a third of the work of any others."""
    size = left.shape[-1]
    if size <= LARGE:
        return left @ right
    half = size // 4 * 2
    product = torch.zeros_like(left)
    product[:, :half, :half] = _lower_product(left[:, :half, :half], right[:, :half, :half])
    product[:, half:, half:] = _lower_product(left[:, half:, half:], right[:, half:, half:])
    product[:, half:, :half] = left[:, half:] @ right[:, :, :half]
    return product
