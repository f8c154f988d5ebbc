"""From continuous time to steps: the rules by which a layer's λ and B become ℓ = log λ̄ and B̄."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ssmdiag.recurrence.modal import DenseRealisation

if TYPE_CHECKING:
    from torch import Tensor


def zoh(eigenvalues: Tensor, step: Tensor) -> Tensor:
    """Return ℓ = Δλ, exact for a zero-order hold.

    `eigenvalues` (channel, mode) real or complex, per unit time; `step` Δ broadcastable to it.
    """
    return as_complex(eigenvalues * step)


def zoh_gain(eigenvalues: Tensor, step: Tensor) -> Tensor:
    """Return B̄/B = (e^{Δλ} − 1)/λ, with its limit Δ at λ = 0; (channel, mode) complex128."""
    eigenvalues = as_complex(eigenvalues)
    z = eigenvalues * step
    half = (z.imag / 2).sin()
    decay = z.real.exp()
    change = as_complex(z.real.expm1() * z.imag.cos() - 2 * half.square()) + 1j * (decay * z.imag.sin() + 0 * half)
    safe = eigenvalues.where(eigenvalues.abs() > 0, 1.0)
    return (change / safe).where(eigenvalues.abs() > 0, as_complex(step + 0 * z.real))


def bilinear(eigenvalues: Tensor, step: Tensor) -> Tensor:
    """Return ℓ = log((1 + z)/(1 − z)) with z = Δλ/2: the bilinear (Tustin) rule.

    Modulus and angle are computed separately, so that a rate of 1e-15 keeps its digits.
    """
    z = as_complex(eigenvalues * step) / 2
    far = (1 - z).abs().square()
    growth = 4 * z.real / far  # |λ̄|² − 1
    near_zero = (1 + z).abs().square() / far  # |λ̄|², where growth cancelled
    modulus = growth.log1p().where(growth > -0.5, near_zero.log()) / 2
    angle = (2 * z.imag).atan2(1 - z.real.square() - z.imag.square())
    return as_complex(modulus) + 1j * angle


def bilinear_gain(eigenvalues: Tensor, step: Tensor) -> Tensor:
    """Return B̄/B = Δ/(1 − Δλ/2), (channel, mode) complex128."""
    return step / (1 - as_complex(eigenvalues * step) / 2)


def bilinear_matrix(A: Tensor, B: Tensor, C: Tensor, step: Tensor, length: int) -> DenseRealisation:
    """Return the bilinear rule of a full state matrix: Ā = (1 − ΔA/2)⁻¹(1 + ΔA/2), B̄ = (1 − ΔA/2)⁻¹ΔB.

    `A` (channel, state, state), `B` (channel, state), `C` (copy, channel, state), `step` (channel, 1). A `length`
    L over 0 says that C is C̃ = C(1 − Ā^L). NaN in a channel where a matrix is singular.
    """
    import torch

    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    half = step[..., None] / 2 * A
    solved = _solve(identity - half, torch.cat([identity + half, (step * B)[..., None]], -1))
    state_matrix, input_matrix = solved[..., :-1], solved[..., -1]
    if length:
        correction = identity - torch.linalg.matrix_power(state_matrix, length)
        C = _solve(correction.mT, C.movedim(0, -1)).movedim(-1, 0)
    return DenseRealisation(as_complex(state_matrix), as_complex(input_matrix), as_complex(C))


def _solve(matrices: Tensor, right: Tensor) -> Tensor:
    """Return the solution of every system of a batch; NaN for those whose matrix is singular."""
    import torch

    solution, failed = torch.linalg.solve_ex(matrices, right)
    return solution.where((failed == 0)[..., None, None], torch.nan)


def matrix_eigenvalues(matrices: Tensor) -> Tensor:
    """Return the eigenvalues (copy, state) of square matrices; NaN for those that hold NaN or infinity."""
    import torch

    sound = matrices.isfinite().flatten(1).all(1)[:, None]
    return torch.linalg.eigvals(matrices.where(sound[..., None], 0.0)).where(sound, torch.nan)


def log_of(discrete: Tensor) -> Tensor:
    """Return ℓ = log λ̄ for eigenvalues that are stored or computed as λ̄ itself."""
    z = as_complex(discrete)
    return as_complex(z.abs().log()) + 1j * z.imag.atan2(z.real)


def as_complex(values: Tensor) -> Tensor:
    """Return the values as complex128."""
    import torch

    return values.to(torch.complex128)
