"""Memory in hundreds of digits: the textbook formulas, solved where they can be solved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import mpmath
import torch
from torch import Tensor

from ssmdiag.recurrence.modal import Recurrence

DIGITS = 320


def spectrum(log_eigenvalues: Tensor, **fields: object) -> Recurrence:
    """Return a recurrence of ℓ (channel, mode) or (mode,) and nothing else."""
    ell = log_eigenvalues.to(torch.complex128)
    return Recurrence("layer", "test", "test", ell if ell.ndim == 2 else ell[None], time_invariant=True, **fields)  # type: ignore[arg-type]


def closed(log_eigenvalues: Sequence[complex]) -> list[mpmath.mpc]:
    """Return each mode once, and its conjugate where it has one."""
    values: list[complex] = []
    for value in map(complex, log_eigenvalues):
        values += [z for z in dict.fromkeys((value, value.conjugate())) if z not in values]
    turn = {0.0: 0, math.pi: mpmath.pi}  # float64's π stands for π: such a mode is real
    return list(dict.fromkeys(mpmath.mpc(z.real, turn.get(abs(z.imag), z.imag)) for z in values))


def gram(modes: Sequence[mpmath.mpc]) -> list[list[mpmath.mpc]]:
    return [[-1 / mpmath.expm1(a + mpmath.conj(b)) for b in modes] for a in modes]


def cholesky(matrix: list[list[mpmath.mpc]]) -> list[list[mpmath.mpc]]:
    rows: list[list[mpmath.mpc]] = []
    for i, given in enumerate(matrix):
        row: list[mpmath.mpc] = []
        for j in range(i):
            row.append((given[j] - mpmath.fdot(row, map(mpmath.conj, rows[j][:j]))) / rows[j][j])
        rows.append([*row, mpmath.sqrt(mpmath.re(given[i]) - mpmath.fsum(abs(x) ** 2 for x in row))])
    return rows


def solve_lower(rows: list[list[mpmath.mpc]], right: Sequence[mpmath.mpc]) -> list[mpmath.mpc]:
    found: list[mpmath.mpc] = []
    for row, value in zip(rows, right, strict=True):
        found.append((value - mpmath.fdot(row[:-1], found)) / row[-1])
    return found


def exact_memory(
    log_eigenvalues: Sequence[complex],
    lags: Sequence[int],
    *,
    epsilon: float = 0.0,
    mean: float = 0.0,
    digits: int = DIGITS,
) -> list[mpmath.mpf]:
    """Return v_τᴴ (G + N)⁻¹ v_τ, with N of a state rounded to epsilon under an input of this mean."""
    with mpmath.workdps(digits):
        modes = closed(log_eigenvalues)
        rows = cholesky(noisy(modes, epsilon, mean))
        states = [[mpmath.exp(z * lag) for z in modes] for lag in lags]
        return [mpmath.fsum(abs(x) ** 2 for x in solve_lower(rows, state)) for state in states]


def exact_capacity(
    log_eigenvalues: Sequence[complex], epsilon: float, digits: int = 80, mean: float = 0.0
) -> mpmath.mpf:
    """Return tr((G + N)⁻¹ G)."""
    with mpmath.workdps(digits):
        modes = closed(log_eigenvalues)
        rows = cholesky(noisy(modes, epsilon, mean))
        G = cholesky(gram(modes))
        columns = [[row[k] if k < len(row) else mpmath.mpf(0) for row in G] for k in range(len(modes))]
        return mpmath.fsum(abs(x) ** 2 for column in columns for x in solve_lower(rows, column))


def exact_within(log_eigenvalues: Sequence[complex], context: int, digits: int = 80) -> mpmath.mpf:
    """Return Σ_{τ<T} MF(τ) = tr(G⁻¹ (G − Λ^T G Λ^Tᴴ))."""
    with mpmath.workdps(digits):
        modes = closed(log_eigenvalues)
        rows = cholesky(gram(modes))
        later = [[mpmath.exp(z * context) * x for x in row] for z, row in zip(modes, rows, strict=True)]
        columns = [[row[k] if k < len(row) else mpmath.mpf(0) for row in later] for k in range(len(modes))]
        return len(modes) - mpmath.fsum(abs(x) ** 2 for column in columns for x in solve_lower(rows, column))


def noisy(modes: Sequence[mpmath.mpc], epsilon: float, mean: float = 0.0) -> list[list[mpmath.mpc]]:
    """Return G + N."""
    G = gram(modes)
    for i, mode in enumerate(modes):
        size = G[i][i] + mpmath.mpf(mean) ** 2 / abs(mpmath.expm1(mode)) ** 2
        G[i][i] += mpmath.mpf(epsilon) ** 2 / 3 * size * G[i][i]  # 1 / (1 − |λ̄|²) is G_ii
    return G
