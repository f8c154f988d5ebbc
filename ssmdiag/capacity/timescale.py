"""The trade of accuracy for length: the same spectrum at other steps, without training.

Δ → f·Δ stretches time by 1/f. MF sums to N whatever f is, so that a longer memory is a fainter one, and below some Δ
not even the present input is rebuilt to one half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssmdiag.capacity.capacity import LayerCapacity, assess_capacity, state_format
from ssmdiag.capacity.noise import complete, noisy_memory_function, precision_of
from ssmdiag.capacity.rounding import Rounding
from ssmdiag.cores import one_thread
from ssmdiag.kernel.dense import realise
from ssmdiag.printable import module_name
from ssmdiag.recurrence.discretisation import as_complex, bilinear
from ssmdiag.recurrence.modal import DenseRealisation, Recurrence

FACTORS = (0.5, 1.0, 2.0, 4.0)
OCTAVES = 7
"""Steps up to 2⁷ times larger or smaller are tried ..."""
TRIES = 57
"""... so many steps of them, a quarter of an octave apart ..."""
REFINEMENTS = 6
"""... and the ends of the range settled to 2^(1/256)."""
_RULES = ("disc", "discretization", "discretisation")


def scaled(recurrence: Recurrence, factor: float | Tensor) -> Recurrence:
    """Return the recurrence with its step Δ times `factor`, a number or (channel, 1).

    ℓ → f·ℓ, exact for a zero-order hold and for gates that decay as exp(−ΔA); by the bilinear rule where the layer was
    read by it, and for dense state matrices. A layer without a step (LRU) has its rates and frequencies scaled. What
    comes back serves for memory: it has no output matrix, and B̄ as it was, of many inputs its size alone. Raises
    ValueError unless factors are positive.
    """
    f = torch.as_tensor(factor, dtype=torch.float64, device=recurrence.log_eigenvalues.device)
    if not bool((f > 0).all()):
        raise ValueError(f"a step is scaled by a positive factor, got {factor}")
    if recurrence.layout == "finite":
        raise ValueError(f"{module_name(recurrence.layer)} is a convolution: it has no step to scale")
    recurrence = realise(recurrence)
    step = None if recurrence.step is None else recurrence.step * f
    if recurrence.dense is not None:
        return replace(
            recurrence,
            log_eigenvalues=_bilinear_scaled(recurrence.log_eigenvalues, f),
            step=step,
            dense=_dense_scaled(recurrence.dense(), f),
        )
    B = recurrence.input_matrix
    if B is not None:
        many = recurrence.layout == "many inputs"
        B = as_complex(B.abs().square().mean(1).sqrt())[None] if many else B.expand(recurrence.log_eigenvalues.shape)
    ell = recurrence.log_eigenvalues
    if recurrence.step is None:  # an angle, which is the same one turn further
        ell = torch.complex(ell.real, torch.remainder(ell.imag + math.pi, math.tau) - math.pi)
    ell = _bilinear_scaled(ell, f) if _is_bilinear(recurrence) else as_complex(ell * f)
    return replace(recurrence, log_eigenvalues=ell, step=step, input_matrix=B, output_matrix=None)


def trade_off(
    recurrence: Recurrence,
    context: int,
    factors: Sequence[float] = FACTORS,
    *,
    state_dtype: str | None = None,
    rounding: Rounding | None = None,
    whole: Recurrence | None = None,
) -> dict[float, LayerCapacity]:
    """Return length, accuracy and capacity with Δ times each factor.

    `whole` is the layer that the recurrence is some channels of, whose largest number an int8 scale may have to reach.
    """
    whole, rounding, found = whole or recurrence, rounding or Rounding(), {}
    for f in factors:
        assumed = complete(rounding, scaled(whole, f))
        found[f] = assess_capacity(scaled(recurrence, f), context, state_dtype=state_dtype, rounding=assumed)
    return found


@dataclass(frozen=True, eq=False)
class StepRange:
    """Factors on Δ with which a channel rebuilds the input `length` steps ago. Tensors (channel,), NaN if none does."""

    length: int
    share: float
    lowest: Tensor
    highest: Tensor
    best: Tensor
    """The factor at which MF_ε(length) is largest, in that range if there is one."""
    memory: Tensor
    """MF_ε(length) there."""
    steps: tuple[Tensor, Tensor] | None
    """Lowest and highest Δ, as `step` is shaped; None for a layer without a step."""

    @property
    def reachable(self) -> Tensor:
        """Whether some step gives the wanted length, (channel,) bool."""
        return ~self.lowest.isnan()


@one_thread()
def recommend_step(
    recurrence: Recurrence,
    length: int,
    share: float = 0.5,
    *,
    state_dtype: str | float | None = None,
    rounding: Rounding | None = None,
) -> StepRange:
    """Return the range of steps with which MF_ε(length) ≥ share, channel by channel, for a state so rounded.

    Exact arithmetic would allow steps so large that a thousandth of a state's last bit is left. By default the format
    is that of the stored weights, as in `assess_capacity`. Looked for between 2⁻⁷ and 2⁷, and below steps at which the
    fastest frequency passes π and comes back as another; of several ranges it is that of the smallest steps. No
    spectrum of N modes has a length above N / share. One int8 scale of a whole layer is that of its other channels as
    they stand, `rounding.largest` or the largest of `recurrence`, and grows where a channel's own numbers do. Raises
    ValueError for a negative length, a share outside (0, 1), or an unknown format.
    """
    if length < 0 or not 0 < share < 1:
        raise ValueError(f"a length of 0 steps or more and a share between 0 and 1, got {length} and {share}")
    state_dtype = state_format(recurrence) if state_dtype is None else state_dtype
    precision_of(state_dtype)
    recurrence = realise(recurrence)
    assumed = complete(rounding or Rounding(), recurrence)

    def memory(octave: Tensor) -> Tensor:
        moved = scaled(recurrence, (2**octave)[:, None])
        return noisy_memory_function(moved, [length], state_dtype, assumed).nan_to_num(-1.0)[:, 0]

    def settle(inside: Tensor, outside: Tensor) -> Tensor:
        for _ in range(REFINEMENTS):
            middle = (inside + outside) / 2
            good = memory(middle) >= share
            inside, outside = torch.where(good, middle, inside), torch.where(good, outside, middle)
        return inside

    share_of_way = torch.linspace(0, 1, TRIES, dtype=torch.float64, device=recurrence.rate.device)
    grid = -OCTAVES + (OCTAVES + _aliasing(recurrence)[:, None]) * share_of_way
    found = torch.stack([memory(octave) for octave in grid.T], 1)
    enough, place = found >= share, torch.arange(TRIES, device=grid.device)
    first = torch.where(enough.any(1), enough.to(torch.uint8).argmax(1), found.argmax(1))
    last = torch.where(~enough & (place > first[:, None]), place, TRIES).amin(1) - 1
    at = found.where((place >= first[:, None]) & (place <= last[:, None]), -2.0).argmax(1)

    def tried(index: Tensor) -> Tensor:
        return grid.gather(1, index.clamp(0, TRIES - 1)[:, None])[:, 0]

    best, top = tried(at), found.gather(1, at[:, None])[:, 0]
    known = top >= 0
    low, high = tried(first - 1), tried(last + 1)
    for width in (0.5, 0.25, 0.125):  # the peak may be narrower than the grid
        for side in (-width, width):
            other = torch.minimum(torch.maximum(best + side * (grid[:, 1] - grid[:, 0]), low), high)
            value = memory(other)
            best, top = torch.where(value > top, other, best), torch.maximum(value, top)
    lowest, highest = settle(torch.minimum(tried(first), best), low), settle(torch.maximum(tried(last), best), high)
    lowest, highest = ((2**end).where(top >= share, torch.nan) for end in (lowest, highest))
    step = recurrence.step
    steps = None if step is None else (step * lowest[:, None], step * highest[:, None])
    return StepRange(
        length=length,
        share=share,
        lowest=lowest,
        highest=highest,
        best=(2**best).where(known, torch.nan),
        memory=top.where(known, torch.nan),
        steps=steps,
    )


def _is_bilinear(recurrence: Recurrence) -> bool:
    return any(a.option in _RULES and a.value == "bilinear" for a in recurrence.assumptions)


def _aliasing(recurrence: Recurrence) -> Tensor:
    """Return log₂ of the factor at which a channel's fastest frequency reaches π, at most `OCTAVES`, (channel,)."""
    frequency = recurrence.frequency
    if recurrence.dense is not None or _is_bilinear(recurrence):
        frequency = 0 * frequency  # the bilinear rule folds nothing
    elif recurrence.step is None:
        frequency = torch.remainder(frequency + math.pi, math.tau) - math.pi
    fastest = frequency.abs().nan_to_num(0.0, posinf=0.0).amax(1)
    return (math.pi / fastest).log2().clamp(-OCTAVES, OCTAVES)


def _bilinear_scaled(log_eigenvalues: Tensor, factor: Tensor) -> Tensor:
    """Return ℓ at f·Δ by the bilinear rule: Δλ/2 = tanh(ℓ/2)."""
    real, imag = log_eigenvalues.real.clamp(-600, 600), log_eigenvalues.imag
    below = real.cosh() + imag.cos()
    half = torch.complex(real.sinh() / below, imag.sin() / below)
    return bilinear(2 * half, factor)


def _dense_scaled(dense: DenseRealisation, factor: Tensor) -> Callable[[], DenseRealisation]:
    """Return Ā and B̄ at f·Δ by the bilinear rule, which leads from one Ā to the other without A."""
    f = factor.reshape(-1, 1, 1)
    identity = torch.eye(dense.state_matrix.shape[-1], dtype=torch.float64, device=factor.device)
    A = dense.state_matrix
    right = torch.cat([(1 + f) * A + (1 - f) * identity, 2 * f * dense.input_matrix[..., None]], -1)
    sound = right.isfinite().flatten(1).all(1)[:, None, None]
    left = ((1 - f) * A + (1 + f) * identity).where(sound, identity)
    solved = torch.linalg.solve(left, right.where(sound, 0.0)).where(sound, torch.nan)
    built = replace(dense, state_matrix=solved[..., :-1], input_matrix=solved[..., -1])
    return lambda: built
