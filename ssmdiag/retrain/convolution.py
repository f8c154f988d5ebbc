"""What the recurrences of the built-in model are made of, fast on short and on long sequences, with their gradients.

| function | computes | by |
|---|---|---|
| `causal_convolution` | Σ_s K_s u_{t−s} for each channel | a matrix product a channel; FFTs for long sequences |
| `modal_states` | h_t = λ̄ h_{t−1} + v_t for each mode | matrix products in chunks of about √T steps |
| `linear`, `gate` | W x + b over channels; z₁ σ(z₂) | |

Work goes in pieces that fit the processor's caches. Memory fresh from the system costs more than the
arithmetic on it: gradients recompute spectra and matrices instead of keeping them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TOEPLITZ = 112
"""Longest sequence convolved by matrix products, with 128 sequences of 64 channels: FFTs are faster beyond."""
SEQUENCES = 3
"""Steps for each sequence of the batch up to which matrix products are faster: a matrix serves all of the batch."""
PIECE = defaultdict(lambda: 512 << 20, cpu=8 << 20)
"""Bytes of scratch memory at a time, by type of device."""


def causal_convolution(u: Tensor, K: Tensor) -> Tensor:
    """Return Σ_s K_s u_{t−s}, (arm, batch, step, channel), for K (arm, channel, lag).

    Channels are the slowest axis of the result in memory, steps the fastest.
    """
    arms, batch, steps, channels = u.shape
    first = u.permute(0, 3, 1, 2).reshape(arms * channels, batch, steps).contiguous()  # with one arm it is a view
    out: Tensor = _Convolution.apply(first, K.reshape(arms * channels, steps))
    return out.view(arms, channels, batch, steps).permute(0, 2, 3, 1)


def modal_states(ell: Tensor, drive: Tensor) -> Tensor:
    """Return h_t = e^ℓ h_{t−1} + v_t from h_{−1} = 0, real parts of all modes and then imaginary ones.

    `ell` (arm, mode) complex128; `drive`, v in the same order, and the states are (arm, 2 mode, batch, step). Within
    a chunk of S steps h is v times the Toeplitz matrix of powers of e^ℓ; the states at the ends of chunks obey the
    same recurrence with e^{ℓS}.
    """
    arms, both, batch, steps = drive.shape
    size = _chunk(steps)
    count = -(-steps // size)
    if steps % size:
        drive = torch.nn.functional.pad(drive, (0, -steps % size))
    rows = arms * (both // 2)
    # Re and Im side by side: a complex product is one real product with twice the terms.
    pair = drive.view(arms, 2, -1, batch * count, size).permute(0, 2, 3, 1, 4).reshape(rows, batch * count, 2 * size)
    states = [pair @ matrix for matrix in _power_matrices(ell, size, 0, drive.dtype)]
    if count > 1:
        ends = torch.cat([part[..., -1].view(rows, batch, count) for part in states], -1)
        carry = [ends @ matrix for matrix in _power_matrices(size * ell, count, 1, drive.dtype)]
        brought = torch.stack(carry, -1).flatten(1, 2)
        powers = _powers(ell, torch.arange(1, size + 1, device=ell.device), drive.dtype).flatten(0, 1)
        spread = (torch.stack([powers.real, -powers.imag], 1), torch.stack([powers.imag, powers.real], 1))
        states = [torch.baddbmm(part, brought, along) for part, along in zip(states, spread, strict=True)]
    return torch.cat([part.view(arms, -1, batch, count * size) for part in states], 1)[..., :steps]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, steps_fastest: bool = False) -> Tensor:
    """Return Wx + b, (arm, batch, step, output), for x (arm, batch, step, channel), W (arm, output, channel).

    In memory outputs are the fastest axis of the result, or steps if asked for. The gradient of x lies in memory
    as x does: torch's own would not, and everything before it would work across strides.
    """
    out: Tensor = _Linear.apply(x.flatten(1, 2), weight, bias, steps_fastest)
    return out.unflatten(1, x.shape[1:3])


def gate(z: Tensor) -> Tensor:
    """Return z₁ σ(z₂) for the halves of the last axis: GLU, at a third of the time of torch's."""
    out: Tensor = _Gate.apply(z)
    return out


class _Convolution(torch.autograd.Function):
    """u (row, batch, step), K (row, lag) → their causal convolution, row by row."""

    @staticmethod
    def forward(context: Any, u: Tensor, K: Tensor) -> Tensor:
        context.save_for_backward(u, K)
        out = torch.empty_like(u)
        for rows in _pieces(u):
            if _by_matrices(u):
                torch.bmm(u[rows], _toeplitz(K[rows]), out=out[rows])
            else:
                size = fft_size(u.shape[-1])
                product = torch.fft.rfft(u[rows], n=size).mul_(torch.fft.rfft(K[rows], n=size)[:, None])
                out[rows] = torch.fft.irfft(product, n=size)[..., : u.shape[-1]]
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        u, K = context.saved_tensors
        grad = grad.contiguous()
        to_u, to_K = torch.empty_like(u), torch.empty_like(K)
        for rows in _pieces(u):
            if _by_matrices(u):
                torch.bmm(grad[rows], _toeplitz(K[rows]).mT, out=to_u[rows])
                to_K[rows] = _diagonal_sums(torch.bmm(u[rows].mT, grad[rows]))
            else:
                steps, size = u.shape[-1], fft_size(u.shape[-1])
                back = torch.fft.rfft(grad[rows], n=size)
                seen = torch.fft.rfft(u[rows], n=size)
                to_K[rows] = torch.fft.irfft(torch.linalg.vecdot(seen, back, dim=1), n=size)[..., :steps]
                back.mul_(torch.fft.rfft(K[rows], n=size)[:, None].conj())
                to_u[rows] = torch.fft.irfft(back, n=size)[..., :steps]
        return to_u, to_K


class _Linear(torch.autograd.Function):
    """x (arm, place, channel), W (arm, output, channel), b (arm, output) → Wx + b, (arm, place, output)."""

    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, steps_fastest: bool) -> Tensor:
        context.save_for_backward(x, weight)
        context.biased = bias is not None
        if steps_fastest:
            out = weight @ x.mT if bias is None else torch.baddbmm(bias[..., None], weight, x.mT)
            return out.mT
        return x @ weight.mT if bias is None else torch.baddbmm(bias[:, None], x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        x, weight = context.saved_tensors
        to_x = None
        if context.needs_input_grad[0]:
            to_x = grad @ weight if x.stride(2) == 1 else (weight.mT @ grad.mT).mT
        return to_x, grad.mT @ x, grad.sum(1) if context.biased else None, None


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, z: Tensor) -> Tensor:
        left, right = z.chunk(2, -1)
        open_ = right.sigmoid()
        context.save_for_backward(left, open_)
        return left * open_

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> Tensor:
        left, open_ = context.saved_tensors
        to_z = grad.new_empty((*left.shape[:-1], 2 * left.shape[-1]))
        to_left, to_right = to_z.chunk(2, -1)
        torch.mul(grad, open_, out=to_left)
        torch.mul(to_left, left, out=to_right)
        to_right.addcmul_(to_right, open_, value=-1.0)  # σ′ = σ (1 − σ)
        return to_z


def fft_size(steps: int) -> int:
    """Return a size that pads the circular convolution into a causal one, and that FFTs are fast at.

    >>> fft_size(100), fft_size(257)
    (200, 540)
    """
    # A size without prime factors above 5 divides a power of 2 · 3 · 5.
    return next(size for size in itertools.count(2 * steps - 1) if 30 ** size.bit_length() % size == 0)


def _by_matrices(u: Tensor) -> bool:
    """Whether to convolve u (row, batch, step) by matrix products."""
    _, batch, steps = u.shape
    return steps <= min(TOEPLITZ, SEQUENCES * batch)


def _pieces(u: Tensor) -> Iterator[slice]:
    """Yield the rows to do at a time."""
    rows, batch, steps = u.shape
    # The matrix of a row, or what its FFTs need: padded input, two spectra and the result.
    each = u.element_size() * (2 * steps * steps if _by_matrices(u) else 4 * batch * fft_size(steps))
    most = max(1, PIECE[u.device.type] // each)
    for start in range(0, rows, most):
        yield slice(start, min(start + most, rows))


def _toeplitz(K: Tensor) -> Tensor:
    """Return M[s, t] = K_{t−s}, zero above the diagonal, (row, step, step), as a view of (row, step, 2 step − 1).

    Rows of K and as many zeros, laid end to end and cut one place shorter, move right by one from row to row.
    """
    rows, steps = K.shape
    padded = torch.nn.functional.pad(K, (0, steps))[:, None].expand(rows, steps, 2 * steps)
    return padded.reshape(rows, -1)[:, : steps * (2 * steps - 1)].view(rows, steps, -1)[..., :steps]


def _diagonal_sums(M: Tensor) -> Tensor:
    """Return Σ_s M[s, s + d] for d = 0 … step − 1, (row, step): the same trick backwards."""
    rows, steps, _ = M.shape
    wide = torch.nn.functional.pad(M, (0, steps)).reshape(rows, -1)
    return torch.nn.functional.pad(wide, (0, steps)).view(rows, steps, -1)[..., :steps].sum(1)


def _chunk(steps: int) -> int:
    """Return a chunk's steps: a divisor near √T where there is one, so that nothing is padded."""
    near = math.isqrt(steps - 1) + 1
    divisors = [size for size in range(max(1, near // 2), 2 * near + 1) if steps % size == 0]
    return min(divisors, key=lambda size: abs(size - near), default=near)


def _powers(ell: Tensor, exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """Return e^{ℓ n}, (arm, mode, exponent), complex; formed in float64, where the phase of a long lag is exact."""
    powers = (ell[..., None] * exponents).exp()
    return powers.to(torch.complex64 if dtype == torch.float32 else torch.complex128)


def _power_matrices(ell: Tensor, size: int, delay: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return two matrices (arm · mode, 2 size, size): [Re v, Im v] times them are Re h and Im h.

    h_t = Σ_s e^{ℓ(t−s−delay)} v_s, with s up to t − delay.
    """
    powers = _powers(ell, torch.arange(size - delay, device=ell.device), dtype).flatten(0, 1)
    real, imaginary = (_toeplitz(torch.nn.functional.pad(part, (delay, 0))) for part in (powers.real, powers.imag))
    return torch.cat([real, -imaginary], 1), torch.cat([imaginary, real], 1)
