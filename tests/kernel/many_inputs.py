"""Layers with many inputs and outputs on one state, and their energies by two slow routes: copies, and 70 digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import mpmath
import torch
from torch import Tensor

from ssmdiag.cores import triangular
from ssmdiag.recurrence.modal import Recurrence

KINDS = ("ring", "hippo", "boundary", "equal", "cancelling to 1e-4", "cancelling to 1e-6", "real", "closed", "odd")


def many_inputs(
    kind: str = "ring", seed: int = 0, modes: int = 8, inputs: int = 6, outputs: int = 5, factor: float = 1.0
) -> Recurrence:
    """Return a layer drawn as LRU and S5 draw theirs, with modes as hard to add up as `kind` says."""
    generator = torch.Generator().manual_seed(seed)
    uniform, phase = torch.rand(2, modes, generator=generator, dtype=torch.float64)
    rate = -0.5 * (uniform * (0.999**2 - 0.9**2) + 0.9**2).log()
    ell = torch.complex(-rate, 6.28 * phase)
    B = torch.randn(modes, inputs, generator=generator, dtype=torch.complex128) / math.sqrt(2 * inputs)
    C = torch.randn(outputs, modes, generator=generator, dtype=torch.complex128) / math.sqrt(modes)
    half = modes // 2
    if kind == "hippo":
        step = 1e-3 * 100**uniform
        ell = step * torch.complex(torch.full_like(step, -0.5), math.pi * torch.arange(modes, dtype=torch.float64))
    elif kind == "boundary":
        ell[: modes // 4 + 1].real.copy_(-1e-9 * (1 + uniform[: modes // 4 + 1]))
    elif kind == "equal":  # the same mode twice, and once more a billionth apart
        ell[half:] = ell[: modes - half].clone()
        ell[0] *= 1 + 1e-9
    elif kind.startswith("cancelling"):
        ell[half : 2 * half] = ell[:half] * (1 + float(kind.split()[-1]))
        B[half : 2 * half], C[:, half : 2 * half] = B[:half], -C[:, :half]
    elif kind == "real":
        ell = torch.complex(-rate, torch.zeros_like(rate))
    elif kind == "closed":  # both modes of each pair, as S5 without conj_sym stores them
        ell[half : 2 * half] = ell[:half].conj()
        B[half : 2 * half], C[:, half : 2 * half] = B[:half].conj(), C[:, :half].conj()
    elif kind == "odd":  # negative, instant, idle, at both ends of the angles
        ell[0], ell[1], ell[2] = complex(-1e-3, math.pi), complex(-0.02, -math.pi), complex(-0.01, 0.0)
        ell[3], ell[4] = complex(-math.inf, 0.0), complex(-0.3, 7.0)
        B[5], C[:, 6] = 0, 0
    gain = (-(2 * ell.real).expm1()).sqrt()
    return Recurrence(
        "layer",
        "test",
        "test",
        ell[None],
        time_invariant=True,
        kernel_factor=factor,
        input_matrix=B * gain[:, None],
        output_matrix=C,
    )


def as_copies(recurrence: Recurrence) -> Recurrence:
    """Return one channel whose copies have the same Frobenius norm as C diag(λ̄^t) B̄, at most 2·modes of them.

    Rotations of the outputs, the inputs and then of their pairs change no norm: three QR factors. It takes modes⁴
    operations, and has a factor's digits.
    """
    B, C = recurrence.input_matrix, recurrence.output_matrix
    assert B is not None
    assert C is not None
    outputs, inputs = _packed(C), _packed(B.mT)
    rows = _packed((outputs[:, None] * inputs).flatten(0, 1))
    return replace(recurrence, input_matrix=torch.ones_like(B[None, :, 0]), output_matrix=rows[:, None])


def _packed(rows: Tensor) -> Tensor:
    """Return R of the QR factors of (Re, Im) rows, packed as complex again."""
    modes = rows.shape[1]
    triangle = triangular(torch.cat([rows.real, rows.imag], 1))
    return torch.complex(triangle[:, :modes].contiguous(), triangle[:, modes:].contiguous())


class ExactEnergy:
    """Σ ‖K_t‖² from any lag on, and over bins, in 70 digits, from the same ℓ, B̄ and C; not of modes that grow."""

    def __init__(self, recurrence: Recurrence) -> None:
        assert recurrence.input_matrix is not None
        assert recurrence.output_matrix is not None
        with mpmath.workdps(70):
            ell = [_exact(z) for z in recurrence.log_eigenvalues[0].tolist()]
            B = [[mpmath.mpc(v) for v in row] for row in recurrence.input_matrix.tolist()]
            C = [[mpmath.mpc(v) for v in row] for row in recurrence.output_matrix.mT.tolist()]
            self.ell = ell + [mpmath.conj(z) for z in ell]
            B, C = ([*rows, *([mpmath.conj(v) for v in row] for row in rows)] for rows in (B, C))
            self.constant = mpmath.mpf(0)  # what pairs on the boundary add to every lag
            self.pairs = []
            for i, a in enumerate(self.ell):
                conjugates = [[mpmath.conj(v) for v in row] for row in (B[i], C[i])]
                for j, b in enumerate(self.ell[: i + 1]):
                    weight = mpmath.fdot(B[j], conjugates[0]) * mpmath.fdot(C[j], conjugates[1])
                    weight *= mpmath.mpf(recurrence.kernel_factor) ** 2 / (4 if i == j else 2)
                    margin = -mpmath.expm1(mpmath.conj(a) + b)
                    if abs(margin) < 1e-60:
                        self.constant += mpmath.re(weight)
                    elif weight:
                        self.pairs.append((i, j, weight / margin))

    def tail(self, lag: int) -> mpmath.mpf:
        with mpmath.workdps(70):
            states = [mpmath.exp(z * lag) for z in self.ell]
            return mpmath.fsum(mpmath.re(w * mpmath.conj(states[i]) * states[j]) for i, j, w in self.pairs)

    def bands(self, edges: Sequence[int]) -> list[mpmath.mpf]:
        with mpmath.workdps(70):
            tails = [self.tail(lag) - lag * self.constant for lag in edges]
            return [before - after for before, after in pairwise(tails)]


def _exact(z: complex) -> mpmath.mpc:
    """Return ℓ, with π where float64's is meant for it."""
    imaginary = mpmath.pi * math.copysign(1, z.imag) if abs(z.imag) == math.pi else z.imag
    return mpmath.mpc(max(z.real, -1e6), imaginary)
