"""One recurrent layer in modal form, in discrete time.

    h_k = diag(λ̄) h_{k−1} + B̄ x_k,     y_k = κ Re(C h_k) + D x_k

A convolution has a kernel of as many lags as it has taps, and no such spectrum: every λ̄ of its shift register is 0.

The spectrum is kept as log-eigenvalues ℓ = log λ̄: a mode with 1 − |λ̄| = 1e-9 has lost half its
digits in λ̄ and none in ℓ. Arrays are indexed `channel mode`; arithmetic is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ssmdiag.printable import module_name

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Assumption:
    """A setting that tensors do not determine, and the value used for it."""

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
    """Name in `ssmdiag.recurrence.maps.MAPS`."""
    values: Tensor
    """Raw values as stored, upcast to float64."""
    dtype: str
    """Stored dtype."""
    discrete: bool = False
    """True: |λ̄| = f(w) itself; False: f(w) is a rate or a step, and the decay an exponential of it."""


@dataclass(frozen=True, eq=False)
class DenseRealisation:
    """A discrete state matrix that must not be diagonalised, with input and output matrices."""

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
    linearised: bool = False
    """True: this is the slope of a nonlinear recurrence at `operating_point`; a mode that grows there saturates."""
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
    """Builds the dense realisation; if set, `log_eigenvalues` serve for margins only."""
    taps: Tensor | None = None
    """K_t of a convolution, (copy, channel, lag) float64, lag 0 first; if set, there is nothing beyond the last."""
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
        if self.taps is not None and (self.taps.ndim != 3 or self.taps.shape[1:] != ell.shape or not self.taps.numel()):
            raise ValueError(f"its taps have shape {tuple(self.taps.shape)}, its modes {tuple(ell.shape)}")
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
    def layout(self) -> Literal["channels", "many inputs", "dense", "finite", "none"]:
        """Form of B̄ and C: per channel, as matrices on one state, in `dense`, in `taps`, or absent."""
        if self.taps is not None:
            return "finite"
        if self.dense is not None:
            return "dense"
        if self.input_matrix is None or self.output_matrix is None:
            return "none"
        return "channels" if self.output_matrix.ndim == 3 else "many inputs"

    @property
    def matrices(self) -> tuple[Tensor, Tensor]:
        """B̄ and C. Raises ValueError where one is absent."""
        if self.input_matrix is None or self.output_matrix is None:
            raise ValueError(f"{module_name(self.layer)} has no input or output matrix; `retention` gives its profile")
        return self.input_matrix, self.output_matrix

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
