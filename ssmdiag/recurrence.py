"""One recurrent layer in modal form, and the discretisations that lead there.

    h_k = diag(λ̄) h_{k−1} + B̄ x_k,     y_k = κ Re(C h_k) + D x_k

The spectrum is kept as log-eigenvalues ℓ = log λ̄: a mode with 1 − |λ̄| = 1e-9 has lost half its
digits in λ̄ and none in ℓ. Arrays are indexed `channel mode`; arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Assumption:
    """A setting that tensors cannot tell, and what was taken for it."""

    option: str
    value: str
    source: Literal["--assume", "file", "inferred", "usual"]
    """`inferred`: the tensors' values suggest it. `usual`: nothing does; the family's usual reading was used."""
    meaning: str
    """What the setting decides, in words."""
    choices: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class RecurrentWeight:
    """A stored weight that decides a decay, and the map it goes through."""

    name: str
    """Cleaned tensor name."""
    role: Literal["rate", "frequency", "step"]
    map: str
    """Name in `ssmdiag.maps.MAPS`."""
    values: Tensor
    """Raw values as stored, upcast to float64."""
    dtype: str
    """Stored dtype."""
    discrete: bool = False
    """True: |λ̄| = f(w) itself; False: f(w) is a rate or a step, and the decay an exponential of it."""


@dataclass(frozen=True, eq=False)
class DenseRealisation:
    """A discrete state matrix that must not be diagonalised, with its input and output."""

    state_matrix: Tensor
    """Ā, (channel, state, state) complex128."""
    input_matrix: Tensor
    """B̄, (channel, state)."""
    output_matrix: Tensor
    """C, (copy, channel, state)."""


@dataclass(frozen=True, eq=False)
class Recurrence:
    """One layer's linear recurrence, read from stored weights.

    A layer with many inputs and outputs on one state (S5, LRU) has a single channel.
    """

    layer: str
    """Dotted path of the module that holds the tensors, with its branch if it has several."""
    family: str
    spelling: str
    log_eigenvalues: Tensor
    """ℓ = log λ̄, (channel, mode) complex128; Re ℓ in nats per step, Im ℓ in radians per step."""
    time_invariant: bool
    """False: the decay depends on the input, and this is its value at `operating_point`."""
    operating_point: str | None = None
    """For selective layers, the input at which the decay was read, in words."""
    conjugate_pairs: bool = False
    """True: one of each conjugate pair is stored; the full spectrum has the conjugates too."""
    kernel_factor: float = 1.0
    """κ: 2 where the conjugate half is implied, 1 otherwise."""
    step: Tensor | None = None
    """Δ, broadcastable to (channel, mode); None for recurrences without a step."""
    input_matrix: Tensor | None = None
    """B̄: (channel, mode), or (mode, input) for many inputs; None where the input gates it."""
    output_matrix: Tensor | None = None
    """C: (copy, channel, mode), or (output, mode) for many outputs."""
    dense: Callable[[], DenseRealisation] | None = None
    """Builds the dense realisation; then `log_eigenvalues` serve for margins alone."""
    weights: tuple[RecurrentWeight, ...] = ()
    tensors: tuple[str, ...] = ()
    """Names of all tensors read."""
    dtype: str = "float64"
    """Stored dtype of the weight that decides the rate."""
    assumptions: tuple[Assumption, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        ell = self.log_eigenvalues
        if ell.ndim != 2 or str(ell.dtype) != "torch.complex128":
            raise ValueError(f"log_eigenvalues must be (channel, mode) complex128, got {tuple(ell.shape)} {ell.dtype}")
        if not ell.numel():
            raise ValueError(f"it has {self.channels} channels of {self.modes} modes: nothing to remember with")
        if self.step is not None and not _expands(self.step, self.channels, self.modes):
            raise ValueError(f"its step has shape {tuple(self.step.shape)}, its modes {tuple(ell.shape)}")
        if self.input_matrix is not None and self.output_matrix is not None:
            self._check_matrices(self.input_matrix, self.output_matrix)

    def _check_matrices(self, B: Tensor, C: Tensor) -> None:
        if C.ndim == 3:
            fits = _expands(B, self.channels, self.modes) and _expands(C[0:1], 1, self.channels, self.modes)
        else:
            fits = B.ndim == C.ndim == 2 and self.channels == 1 and len(B) == C.shape[1] == self.modes
        if not fits or not B.numel() or not C.numel():
            raise ValueError(
                f"its B and C have shapes {tuple(B.shape)} and {tuple(C.shape)}, "
                f"which do not fit {self.channels} channels of {self.modes} modes"
            )

    @property
    def channels(self) -> int:
        return self.log_eigenvalues.shape[0]

    @property
    def modes(self) -> int:
        return self.log_eigenvalues.shape[1]

    @property
    def layout(self) -> Literal["channels", "many inputs", "dense", "none"]:
        """How B̄ and C are held: per channel, as matrices on one state, in `dense`, or not at all."""
        if self.dense is not None:
            return "dense"
        if self.input_matrix is None or self.output_matrix is None:
            return "none"
        return "channels" if self.output_matrix.ndim == 3 else "many inputs"

    @property
    def rate(self) -> Tensor:
        """r = −Re ℓ in nats per step, (channel, mode); r ≤ 0 is on or past the stability boundary."""
        return -self.log_eigenvalues.real

    @property
    def frequency(self) -> Tensor:
        """ω = Im ℓ in radians per step, (channel, mode)."""
        return self.log_eigenvalues.imag

    @property
    def time_constant(self) -> Tensor:
        """τ = 1/r in steps, (channel, mode); infinite on and past the boundary."""
        rate = self.rate
        return (1 / rate).where((rate > 0) | rate.isnan(), math.inf)

    @property
    def half_life(self) -> Tensor:
        """ln 2 / r in steps, (channel, mode)."""
        return math.log(2) * self.time_constant

    @property
    def margin(self) -> Tensor:
        """1 − |λ̄| = −expm1(−r), (channel, mode)."""
        return -(-self.rate).expm1()


def _expands(values: Tensor, *shape: int) -> bool:
    """Whether the values can be expanded to this shape."""
    missing = len(shape) - values.ndim
    return missing >= 0 and all(own in (1, size) for own, size in zip(values.shape, shape[missing:], strict=True))


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

    Modulus and angle are formed apart, so that a rate of 1e-15 keeps its digits.
    """
    z = as_complex(eigenvalues * step) / 2
    far = (1 - z).abs().square()
    growth = 4 * z.real / far  # |λ̄|² − 1
    near_zero = (1 + z).abs().square() / far  # |λ̄|², where growth has cancelled
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
