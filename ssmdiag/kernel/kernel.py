"""The memory kernel of a recurrence: K_t, the response of the output to an impulse t steps ago.

Write t = qS + s with S ≈ √L. Then K is one real matrix product per channel,

    K[qS + s] = Re Σ_n (w_n λ̄_n^{qS}) λ̄_n^s          modal
    K[qS + s] = Re (C Ā^{qS}) (Ā^s B̄)                 dense: by repeated squaring, without eigenvectors

of powers computed in complex128, so that the error does not grow with t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssmdiag.cores import PIECES, cores_for, one_thread, share_out
from ssmdiag.errors import SsmdiagError
from ssmdiag.kernel.dense import krylov, on_real_state, realise, states_at
from ssmdiag.kernel.finite import taps_at
from ssmdiag.kernel.powers import lags_of, modal_weights, powers
from ssmdiag.kernel.status import channel_status
from ssmdiag.printable import module_name
from ssmdiag.recurrence.modal import Recurrence

MEMORY_LIMIT = 2 * 2**30
"""Bytes a kernel and the work on it may take, by default."""
WORKING_SET = 8 * 2**20
"""Bytes of tables made at a time: tables that fit a processor's cache are twice as fast."""
SHARED = 2**21
"""Fewest values of a kernel that are shared between cores; computing fewer takes no longer than starting threads."""
CANCELLATION = 16.0
"""Ratio of Σ|w| to the largest |K| above which a channel's product is computed in float64."""


class KernelSizeError(SsmdiagError):
    """The kernel asked for does not fit into the memory allowed."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """Kernels of a layer, or of some of its channels, at consecutive lags."""

    values: Tensor
    """K: (copy, channel, lag), or (output, input, lag) of a layer with many inputs on one state."""
    noise: Tensor
    """Bound on any value's rounding error besides its own last bit, (copy, channel) or (output, input) float64."""
    status: Tensor
    """`Status` of each channel, (channel,) uint8; of the one state of a layer with many inputs, (1,)."""
    layer: str
    family: str
    first: int = 0
    """The layer's channel (output, where there are many inputs) that comes first here."""
    units: str = field(default="output per unit of input; lags in steps")

    @property
    def lags(self) -> Tensor:
        return torch.arange(self.values.shape[-1], device=self.values.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device


@one_thread()
def compute_kernel(
    recurrence: Recurrence,
    length: int,
    *,
    dtype: torch.dtype = torch.float64,
    product: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Kernel:
    """Return K_t for t = 0 … length − 1, on the device of the recurrence.

    `dtype` is that of the values: float64 by default. In float32 they lose nine of sixteen digits and take half the
    memory, but little less time. `product` is the dtype of the matrix product: by default float64 on a CPU, where
    nothing in it is subnormal, and `dtype` on any other device.
    Raises ValueError where B or C is absent, KernelSizeError where the values alone exceed `memory_limit` bytes.
    """
    recurrence = realise(recurrence)
    part = _open(recurrence, length, dtype, product)
    values = part.allocate(part.size, memory_limit)
    noise = part.fill_shared(0, values, memory_limit - values.nbytes)
    return part.kernel(values, noise, 0, channel_status(recurrence))


def iter_kernel(
    recurrence: Recurrence,
    length: int,
    *,
    dtype: torch.dtype = torch.float64,
    product: torch.dtype | None = None,
    memory_limit: int = MEMORY_LIMIT,
) -> Iterator[Kernel]:
    """Yield the same kernel in parts, each of as many channels (or outputs) as fit into `memory_limit` bytes."""
    with one_thread():
        recurrence = realise(recurrence)
        part = _open(recurrence, length, dtype, product)
        status = channel_status(recurrence)
    for start, stop in part.spans(part.size, memory_limit, output=True):
        with one_thread():
            values = part.allocate(stop - start, memory_limit)
            noise = part.fill_shared(start, values, memory_limit - values.nbytes)
        yield part.kernel(values, noise, start, status if len(status) != part.size else status[start:stop])


@one_thread()
def sample_kernel(recurrence: Recurrence, lags: Tensor | Sequence[int]) -> Tensor:
    """Return K at any lags up to 2⁴⁰ in float64: (copy, channel, lag) or (output, input, lag)."""
    at = lags_of(lags, recurrence.log_eigenvalues.device)
    if recurrence.taps is not None:
        return taps_at(recurrence.taps, at)
    if recurrence.dense is not None:
        dense = on_real_state(recurrence.dense())
        return (dense.output_matrix[:, :, None] @ states_at(dense, at))[:, :, 0]
    if recurrence.layout == "many inputs":
        return _sample_matrix(recurrence, at)
    weights, ell = modal_weights(recurrence), recurrence.log_eigenvalues
    values = weights.real.new_empty(*weights.shape[:2], len(at))
    span = max(1, 2 * WORKING_SET // (16 * ell.shape[1] * max(1, len(at))))
    for start in range(0, len(ell), span):
        chunk = slice(start, start + span)
        # With real and imaginary parts side by side, Re Σ w λ̄^t is one real product.
        table = torch.view_as_real(powers(ell[chunk, None], at[:, None]).conj().resolve_conj()).flatten(-2)
        rows = torch.view_as_real(weights[:, chunk].resolve_conj()).flatten(-2)
        values[:, chunk] = torch.einsum("cht,hlt->chl", rows, table)
    return values


def _sample_matrix(recurrence: Recurrence, at: Tensor) -> Tensor:
    """Return Re C diag(λ̄^t) B̄ at some lags, (output, input, lag), without a table of the modes' weights."""
    B, C = recurrence.matrices
    readers = recurrence.kernel_factor * torch.cat([C.real, -C.imag], 1)
    values = readers.new_empty(*_matrix_shape(recurrence), len(at))
    for k, decay in enumerate(powers(recurrence.log_eigenvalues[0], at[:, None])):
        states = decay[:, None] * B
        values[..., k] = readers @ torch.cat([states.real, states.imag])
    return values


def _matrix_shape(recurrence: Recurrence) -> tuple[int, int]:
    B, C = recurrence.matrices
    return C.shape[0], B.shape[1]


def _open(recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype | None) -> _Part:
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    kinds = {
        "dense": _DensePart,
        "finite": _FinitePart,
        "many inputs": _MatrixPart,
        "channels": _ModalPart,
        "none": _ModalPart,
    }
    if product is None:
        product = torch.float64 if recurrence.log_eigenvalues.device.type == "cpu" else dtype
    return kinds[recurrence.layout](recurrence, length, dtype, product)


class _Part:
    """Fills rows of a kernel held as (channel, copy, lag), or (output, input, lag)."""

    size: int
    """Channels, or outputs."""
    width: int
    """Copies, or inputs."""
    states: int
    """Real numbers per power."""
    fewest = 1
    """Fewest channels, or outputs, of a piece of work: smaller pieces cost more than another core saves."""

    def __init__(self, recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype) -> None:
        self.recurrence, self.length, self.dtype, self.product = recurrence, length, dtype, product
        self.device = recurrence.log_eigenvalues.device
        self.columns = 2 ** round(math.log2(length) / 2)
        self.rows = -(-length // self.columns)

    def fill(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Write K of channels start … stop, and return the noise (channel, copy)."""
        raise NotImplementedError

    def row_bytes(self, output: bool) -> int:
        """Return the bytes needed for one channel: the tables in both precisions, and the values."""
        tables = (self.rows * self.width + self.columns) * self.states * 12
        values = self.width * self.rows * self.columns
        # A channel that is recomputed in float64 needs its values a second time.
        return tables + values * (8 + (self.dtype.itemsize if output else 0))

    def allocate(self, size: int, memory_limit: int) -> Tensor:
        count = size * self.width * self.rows * self.columns
        if count * self.dtype.itemsize > memory_limit:
            raise KernelSizeError(
                f"{module_name(self.recurrence.layer)}: the kernel of {size:,} × {self.width:,} × {self.length:,} lags "
                f"takes {count * self.dtype.itemsize / 2**30:,.1f} GiB, {memory_limit / 2**30:,.1f} are allowed.",
                advice="ask for fewer lags or channels, or take it in parts (iter_kernel) or at some lags "
                "(sample_kernel).",
            )
        return torch.empty(size, self.width, self.rows * self.columns, dtype=self.dtype, device=self.device)

    def fill_shared(self, first: int, out: Tensor, memory: int) -> Tensor:
        """Write K of the channels from `first` on, using all cores; return the noise (channel, copy)."""
        cores = cores_for(self.device) if out.numel() >= SHARED else 1
        spans = self.spans(len(out), memory // cores, cores=cores)

        def fill(piece: int) -> Tensor:
            start, stop = spans[piece]
            return self.fill(first + start, first + stop, out[start:stop])

        return torch.cat(share_out(fill, range(len(spans)), self.device))

    def spans(self, size: int, memory: int, *, output: bool = False, cores: int = 1) -> list[tuple[int, int]]:
        """Return ranges of channels, limited by memory, by each core's share and by its cache."""
        span = memory // self.row_bytes(output)
        if not output:
            share = size if cores == 1 else max(self.fewest, -(-size // (PIECES * cores)))
            span = min(span, share, self.in_cache())
        span = max(1, span)
        return [(start, min(start + span, size)) for start in range(0, size, span)]

    def in_cache(self) -> int:
        """Return the number of channels whose tables fit a processor's cache."""
        return WORKING_SET // ((self.rows * self.width + self.columns) * self.states * 12)

    def kernel(self, values: Tensor, noise: Tensor, first: int, status: Tensor) -> Kernel:
        values = values[..., : self.length]
        if self.recurrence.layout != "many inputs":
            values, noise = values.transpose(0, 1), noise.T
        return Kernel(values, noise, status, self.recurrence.layer, self.recurrence.family, first)


class _ModalPart(_Part):
    def __init__(self, recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype) -> None:
        super().__init__(recurrence, length, dtype, product)
        self.weights = modal_weights(recurrence).transpose(0, 1)
        self.size, self.width, self.states = self.weights.shape[0], self.weights.shape[1], 2 * recurrence.modes

    def fill(self, start: int, stop: int, out: Tensor) -> Tensor:
        """Write Re Σ w λ̄^t, for weights (channel, copy, mode), into (channel, copy, lag)."""
        ell, weights = self.recurrence.log_eigenvalues[start:stop], self.weights[start:stop]
        columns = _power_table(ell.conj().resolve_conj(), self.columns, 1)
        rows = _power_table(ell, self.rows, self.columns, weights)
        _product(rows, columns, self.product, out)
        total = weights.abs().sum(-1)
        noise = total * (math.sqrt(self.states) * torch.finfo(self.product).eps)
        if self.product == torch.float32:
            # Where the modes cancel, the product of float32 tables is all noise: these channels are recomputed.
            largest = out[..., : self.columns].abs().amax(-1).double()
            hard = (total > CANCELLATION * largest).any(-1)
            for channel in hard.nonzero()[:, 0].tolist():
                one = slice(channel, channel + 1)
                _product(rows[one], columns[one], torch.float64, out[one])
            noise[hard] *= torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return noise


class _MatrixPart(_Part):
    """A kernel matrix on one state, [Re C, −Im C] (Re, Im)(z_t B̄): chunked by outputs instead of channels."""

    fewest = 32  # every piece computes the states of all inputs

    def __init__(self, recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype) -> None:
        super().__init__(recurrence, length, dtype, product)
        self.size, self.width = _matrix_shape(recurrence)
        self.states = 2 * recurrence.modes

    def row_bytes(self, output: bool) -> int:
        return self.width * self.rows * self.columns * (self.dtype.itemsize if output else 0) + 8 * self.states

    def in_cache(self) -> int:
        return self.size  # tables cover some inputs and lags at a time

    def fill(self, start: int, stop: int, out: Tensor) -> Tensor:
        B, C = self.recurrence.matrices
        C = self.recurrence.kernel_factor * C[start:stop]
        total = C.abs() @ B.abs()
        noise = total * (math.sqrt(self.states) * torch.finfo(self.product).eps)
        self._multiply(C, B.mT, self.product, out)
        if self.product == torch.float32:
            # As for channels: where the modes cancel, all is noise.
            largest = out[..., : self.columns].abs().amax(-1).double()
            if bool((total > CANCELLATION * largest).any()):
                self._multiply(C, B.mT, torch.float64, out)
                noise *= torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        return noise

    def _multiply(self, C: Tensor, columns: Tensor, product: torch.dtype, out: Tensor) -> None:
        """Write Re C diag(z_t) B̄ for `columns` of B̄, (input, mode), into (output, input, lag)."""
        readers = torch.view_as_real(C.conj().resolve_conj()).flatten(1).to(product)
        ell = self.recurrence.log_eigenvalues[0]
        lags = min(out.shape[-1], max(1, WORKING_SET // (8 * self.states)))
        table = torch.view_as_complex(_power_table(ell[None], lags, 1)[0].unflatten(-1, (-1, 2)))
        inputs = max(1, 4 * WORKING_SET // (8 * lags * max(self.states, len(C))))
        for first in range(0, out.shape[-1], lags):
            decay = table[: out.shape[-1] - first]
            if first:
                decay = decay * powers(ell, ell.real.new_tensor(float(first)))
            for input in range(0, len(columns), inputs):
                some = columns[input : input + inputs, None] * decay
                states = torch.view_as_real(some).flatten(2).flatten(0, 1).to(product)
                part = out[:, input : input + inputs, first : first + len(decay)]
                part.copy_((readers @ states.mT).view(part.shape))


class _DensePart(_Part):
    """A non-normal state matrix: its powers may be large where K is small, so everything is float64."""

    def __init__(self, recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype) -> None:
        super().__init__(recurrence, length, dtype, product)
        assert recurrence.dense is not None
        self.dense = recurrence.dense()
        self.width, self.size, self.states = self.dense.output_matrix.shape

    def row_bytes(self, output: bool) -> int:
        return super().row_bytes(output) + 3 * 16 * self.states**2

    def fill(self, start: int, stop: int, out: Tensor) -> Tensor:
        dense = self.dense
        C = dense.output_matrix[:, start:stop].movedim(0, 1)
        states, A = krylov(dense.state_matrix[start:stop], dense.input_matrix[start:stop, :, None], self.columns)
        readers, _ = krylov(A.mT[:, None], C[..., None], self.rows)
        rows, columns = readers[..., : self.rows].mT.flatten(1, 2), states.mT
        _product(rows, columns, torch.float64, out)
        size = rows.norm(dim=-1).reshape(len(C), self.width, -1).amax(-1) * columns.norm(dim=-1).amax(-1)[:, None]
        return size * (math.sqrt(self.states) * torch.finfo(torch.float64).eps)


class _FinitePart(_Part):
    """The taps themselves, and nothing after them."""

    def __init__(self, recurrence: Recurrence, length: int, dtype: torch.dtype, product: torch.dtype) -> None:
        super().__init__(recurrence, length, dtype, product)
        assert recurrence.taps is not None
        self.taps, self.states = recurrence.taps.transpose(0, 1), 1
        self.size, self.width = self.taps.shape[:2]

    def fill(self, start: int, stop: int, out: Tensor) -> Tensor:
        own = self.taps[start:stop, :, : self.length]
        out.zero_()
        out[..., : own.shape[-1]] = own
        return own.new_zeros(own.shape[:2])


def _power_table(ell: Tensor, count: int, stride: int, weights: Tensor | None = None) -> Tensor:
    """Return λ̄^{stride·k} for k < count, times weights (channel, copy, mode), as (channel, copy · k, (mode, re/im)).

    A table of length m is doubled by multiplying it by λ̄^{stride·m}. Each of those powers is computed directly, so an
    entry is a product of at most as many of them as k has binary digits, and few exponentials are needed.
    """
    lengths = [0, *(2**digit for digit in range((count - 1).bit_length()))]
    lags = torch.tensor(lengths, dtype=torch.float64, device=ell.device) * stride
    start, *jumps = powers(ell[:, None], lags[:, None])[:, None].split(1, 2)  # lag 0 shows where ℓ is NaN
    copies = 1 if weights is None else weights.shape[1]
    table = start.new_empty(len(ell), copies, count, ell.shape[1])
    table[:, :, :1] = start if weights is None else start * weights[:, :, None]
    for digit, jump in enumerate(jumps):
        done = 2**digit
        more = min(done, count - done)
        torch.mul(table[:, :, :more], jump, out=table[:, :, done : done + more])
    return torch.view_as_real(table).flatten(-2).flatten(1, 2)


def _product(rows: Tensor, columns: Tensor, dtype: torch.dtype, out: Tensor) -> None:
    """Write rows · columnsᵀ, (channel, copy · q, s), into (channel, copy, lag)."""
    rows, columns = rows.to(dtype), columns.to(dtype)
    shape = (out.shape[0], rows.shape[1], columns.shape[1])
    if out.dtype == dtype and out.is_contiguous():
        torch.bmm(rows, columns.mT, out=out.view(shape))
    else:
        out.copy_(torch.bmm(rows, columns.mT).view(out.shape))
