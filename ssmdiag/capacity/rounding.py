"""How far each step's rounding moves the numbers of a state, and the noise that an input then competes with.

A number is rounded to multiples of its step q, an error of q²/12: a step of its format at its own size, or of an 8-bit
integer's scale. Under white input u of mean m, a mode's number has size and mean

    x ← λ̄ x + b u:     E|x − μ|² = |b|²/(1 − |λ̄|²),   E(x − μ)² = b²/(1 − λ̄²),   μ = m b/(1 − λ̄)

whose real and imaginary parts are rounded apart. Two things make the error other than white and of q²/12:

- where a step adds less than q, rounding swallows it. Of a Gaussian d of deviation s there passes a share
  α = Σ_k (q/s) φ((k + ½)q/s), and the rest is noise: E Q(d)² − α² s², relative to α² (Bussgang, 1952);
- where the next number is rounded at nearly the same place between two steps, errors repeat. After j steps that place
  has moved by V_j steps squared; the error is a saw-tooth, so that noise at the mode's own frequency ω is

    1 + 2 Σ_j cos(ωj) |λ̄|^j Σ_k 6/(π²k²) exp(−2π²k² V_j)     times as large.

Held against recurrences that were really rounded (19 spectra, B̄ of any phase; tests/capacity/test_rounded_runs.py),
the modes that a readout measured were within 10 % or 0.3 modes of what is said in 188 of 190 runs:

| state | outside, mean 0 | outside, mean 1 |
|---|---|---|
| bf16; fp16 | 0 of 19; 0 of 19 | 0 of 19; 0 of 19 |
| int8, a scale per number | 0 of 19 | 0 of 19 |
| int8, a scale per channel | 0 of 19 | 1 of 19: Mamba at Δ = 0.003 keeps 2.6 modes of 2.3 said |
| int8, a scale per layer | 0 of 19 | 1 of 19: S4D-Inv at Δ = 0.01 keeps 4.9 modes of 4.0 said |

Runs four times as long give the same two (2.6 and 4.8). Rounding swallows most steps of their slowest modes, which then
decay more slowly than the weights say; that explains a part of it, and the formula says too few. So it does beyond
these spectra, at slow steps: 12.3 modes of 11.2 said for a scale per number (S4D-Inv at Δ = 0.001, real B̄), and for one
a channel with a mean of 1, real B̄, a third too few and more (S4D-Inv: 3.4 modes of 2.3 said at Δ = 0.003, 1.5 of 0.8
at Δ = 0.002). Where rounding takes a tenth or more of what a step adds from a tenth of a layer's numbers, the report
says "at least" and how many numbers those are (JSON `swallowed`); no such run kept 0.3 modes fewer than was said.

An int8 state has a fixed scale, `INT8_RANGE` standard deviations of the largest number past its mean. A scale found
anew at each step has errors that are not white, and is not covered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ssmdiag.kernel.orthonormal import around_one
from ssmdiag.recurrence.modal import Recurrence

Int8Scale = Literal["state", "channel", "layer"]
INT8_RANGE = 4.0
"""Standard deviations of a state, past its mean, that the 127 steps of an 8-bit integer are stretched over."""
HALF_SPACING = {"bf16": 2.0**-8, "fp16": 2.0**-11, "float32": 2.0**-24}
"""Half the spacing of a format's numbers just above 1."""
LEAST_EXPONENT = {"bf16": -126, "fp16": -14, "float32": -126}
"""Of a format's normal numbers; below, the spacing falls no further."""
BINADE = 3 / (8 * math.log(2))
"""Mean of 4^⌊log₂|x|⌋ as a share of x², over all scales of x."""
STATE_PRECISION = {
    "bf16": HALF_SPACING["bf16"] * BINADE**0.5,
    "fp16": HALF_SPACING["fp16"] * BINADE**0.5,
    "int8": INT8_RANGE / 254,
    "float32": HALF_SPACING["float32"] * BINADE**0.5,
}
"""ε of a state's format: an error of ε²/3 of a number squared, over all scales; for int8 of its variance."""

LARGEST_MEAN = 1e6
"""Standard deviations of the input beyond which its mean is not meant: no format keeps anything beside it."""
SWALLOWED = 2.5
"""Steps of a format per deviation of what a step adds, past which rounding loses a tenth of it or more."""
_BINADES = 24
_PLACES = 9
"""Multiples of q a Gaussian wider than q can reach from its mean with a share that counts."""
_NARROW = 40.0
"""Steps per deviation past which nothing passes."""
_HARMONICS = (1, 2, 3)
_NEAR, _REACH = 8, 2.0**12
"""Lags whose errors are added one by one, and how far they are in blocks ..."""
_WIDER = 1.5
"""... each so much longer than the one before."""


@dataclass(frozen=True)
class Rounding:
    """What is assumed of a layer's input, and of the scales of an 8-bit state.

    Raises ValueError for a mean that is not finite, a scale of the input that is not positive, or another int8 scale.
    """

    input_mean: float = 0.0
    """Mean of the white input, in its standard deviations."""
    input_scale: float | None = None
    """Its standard deviation; None: states lie in the normal range of their format, at any scale."""
    int8_scale: Int8Scale = "state"
    """Whether each number of a state has a scale of its own, or the largest of its channel or layer decides."""
    largest: float | None = None
    """`largest_number` of the layer, where only some of its channels are at hand; theirs counts where it is larger."""

    def __post_init__(self) -> None:
        if not abs(self.input_mean) <= LARGEST_MEAN:
            raise ValueError(
                f"the input's mean is at most {LARGEST_MEAN:,.0f} of its standard deviations, not {self.input_mean}"
            )
        if self.input_scale is not None and not 0 < self.input_scale < math.inf:
            raise ValueError(f"the input's standard deviation is above 0, not {self.input_scale}")
        if self.int8_scale not in get_args(Int8Scale):
            raise ValueError(f"int8_scale is one of {', '.join(get_args(Int8Scale))}, not {self.int8_scale!r}")

    def sentence(self, state_dtype: str, *, gated: bool = False) -> str:
        """Return the assumptions in words."""
        size = "" if self.input_scale is None else f"standard deviation {self.input_scale:g} and "
        mean = f"mean {self.input_mean:g} standard deviations" if self.input_mean else "zero mean"
        text = f"white input of {size}{mean}, the state rounded to {state_dtype} at every step"
        if state_dtype == "int8":
            owner = "number of a state" if self.int8_scale == "state" else self.int8_scale
            text += f" with one fixed scale per {owner}, {INT8_RANGE:g} standard deviations past its mean"
        elif self.input_scale is None:
            text += ", none of it too small or too large for its normal range"
        if gated and (self.input_scale is not None or (state_dtype == "int8" and self.int8_scale != "state")):
            text += "; B, which the input gates, assumed to be 1 in every mode"
        return text


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers that are stored of some states: |μ|, deviation and what is squared; (channel, mode, part) float64."""

    mean: Tensor
    variance: Tensor
    drive: Tensor
    """Variance of what the input adds at a step."""
    added: Tensor
    """Variance of what a step adds in all."""
    ell: Tensor | None = None
    """ℓ (channel, mode, 1) of complex modes."""


def modal_numbers(ell: Tensor, power: Tensor, pseudo: Tensor, paired: Tensor, rounding: Rounding) -> Numbers:
    """Return the numbers of modes ℓ (channel, mode) with |b|² and b², the latter 0 where a phase is not known."""
    m, scale = rounding.input_mean, (rounding.input_scale or 1.0) ** 2
    power, pseudo = power * scale, pseudo * scale
    size = power / -(2 * ell.real).expm1()
    if not ell.is_complex():
        below = -ell.expm1()
        mean, added = (m * power.sqrt() / below).abs(), power + below.square() * size
        return Numbers(mean[..., None], size[..., None], power[..., None], added[..., None])
    above, below = around_one(ell)
    turned = pseudo / (above * below)
    single = paired.logical_not()
    variance = _parts(size, turned.real, single).clamp(min=0)
    drive = _parts(power, pseudo.real, single).clamp(min=0)
    mean = abs(m) * _parts(power / below.abs().square(), (pseudo / below.square()).real, single).clamp(min=0).sqrt()
    turn = below.abs().square()[..., None]
    added = drive + turn * (variance.sum(-1, keepdim=True) / 2).where(paired[..., None], variance)
    return Numbers(mean, variance, drive, added, ell[..., None])


def _parts(whole: Tensor, difference: Tensor, single: Tensor) -> Tensor:
    """Return what of a square falls on the real and on the imaginary part; all on the one of a real mode."""
    first = ((whole + difference) / 2).where(~single, whole)
    return torch.stack([first, ((whole - difference) / 2).where(~single, 0.0)], -1)


def step_noise(numbers: Numbers, state_dtype: str, rounding: Rounding) -> Tensor:
    """Return the variance that rounding adds to each number at a step, as white noise would, shaped as they are."""
    square = squared_steps(numbers, state_dtype, rounding)
    noise = square / 12
    coarse = square > numbers.added
    if bool(coarse.any()):
        noise = torch.where(coarse, square * _swallowed((square / numbers.added).sqrt()), noise)
    if numbers.ell is not None:
        turning = numbers.ell.imag.sin().square() * numbers.drive.flip(-1)  # the mode's other part drives it
        repeated = (2 * numbers.drive + turning < 0.4 * square) & (numbers.variance > 0)
        if bool(repeated.any()):
            noise = noise * _repeated(numbers, square, repeated)
    return noise


def swallows(numbers: Numbers, state_dtype: str, rounding: Rounding) -> Tensor:
    """Return where rounding loses a tenth of what a step adds, or more, shaped as the numbers are, bool.

    Such a number decays more slowly than its weights say, which the noise of a step does not show.
    """
    return (squared_steps(numbers, state_dtype, rounding) > SWALLOWED**2 * numbers.added) & (numbers.variance > 0)


def squared_steps(numbers: Numbers, state_dtype: str, rounding: Rounding) -> Tensor:
    """Return q² of each number."""
    mean, deviation = numbers.mean, numbers.variance.sqrt()
    if state_dtype == "int8":
        largest = mean + INT8_RANGE * deviation
        if rounding.int8_scale == "channel":
            largest = largest.flatten(1).amax(1)[:, None, None].expand_as(largest)
        elif rounding.int8_scale == "layer":
            if rounding.largest is None:
                largest = largest.amax().expand_as(largest)
            else:  # a channel whose own numbers have outgrown the others' decides
                largest = largest.flatten(1).amax(1).clamp(min=rounding.largest)[:, None, None].expand_as(largest)
        return (largest / 127).square()
    if rounding.input_scale is None:
        squares = BINADE * (mean.square() + numbers.variance)
    else:
        squares = _squared_binade(mean, deviation, LEAST_EXPONENT[state_dtype])
    return 4 * HALF_SPACING[state_dtype] ** 2 * squares


def largest_number(numbers: Numbers) -> float:
    """Return the largest number that an int8 scale of all of them has to reach."""
    return float((numbers.mean + INT8_RANGE * numbers.variance.sqrt()).amax())


def _squared_binade(mean: Tensor, deviation: Tensor, least: int) -> Tensor:
    """Return the mean of 4^⌊log₂|x|⌋ of Gaussian numbers, the exponent never below `least`."""
    top = (mean + 6 * deviation).clamp(min=2.0**least).log2().floor() + 1
    exponents = top[..., None] - torch.arange(_BINADES, dtype=mean.dtype, device=mean.device)
    edges, spread = (2.0**exponents), deviation.clamp(min=1e-300)[..., None]

    def below(edge: Tensor) -> Tensor:
        high, low = (edge - mean[..., None]) / spread, (-edge - mean[..., None]) / spread
        return torch.special.ndtr(high) - torch.special.ndtr(low)

    shares = below(edges)  # |x| < 2^e, falling
    inside = shares[..., :-1] - shares[..., 1:]
    squares = 4.0 ** exponents[..., 1:].clamp(min=least)
    return (inside * squares).sum(-1) + shares[..., -1] * 4.0 ** exponents[..., -1].clamp(min=least)


def _swallowed(ratio: Tensor) -> Tensor:
    """Return noise in q², relative to what passes, where a step adds a Gaussian of q/ratio, ratio > 1."""
    ratio = ratio.clamp(1.0, _NARROW)[..., None]
    edges = ratio * (torch.arange(_PLACES, dtype=ratio.dtype, device=ratio.device) + 0.5)
    passed = (2 * ratio * (-edges.square() / 2).exp()).sum(-1) / math.sqrt(math.tau)
    odd = 2 * torch.arange(_PLACES, dtype=ratio.dtype, device=ratio.device) + 1
    kept = (odd * torch.special.erfc(edges / math.sqrt(2))).sum(-1)
    return (kept / passed.square().clamp(min=1e-60) - ratio[..., 0] ** -2).clamp(1 / 12, 1e30)


def _repeated(numbers: Numbers, square: Tensor, where: Tensor) -> Tensor:
    """Return how many times larger errors that repeat make the noise, 1 elsewhere."""
    assert numbers.ell is not None
    ell = numbers.ell.expand_as(square)[where]
    values = (numbers.drive, numbers.drive.flip(-1), numbers.variance, numbers.variance.flip(-1))
    drive, other, variance, beside = (part[where] / square[where] for part in values)
    across, back = (ell.imag.sin() * ell.real.exp()).square(), (ell.real.exp() * ell.imag.cos() - 1).square()
    moved = (1 - ell.exp()).abs().square()
    lags, weights = _blocks(square)
    spread = (
        2 * drive[:, None] + (across * other + back * drive)[:, None] * lags
        + (moved * (across * beside + back * variance))[:, None] * lags.square()
    )  # fmt: skip
    first = (-2 * math.pi**2 * spread).exp()
    saw = torch.stack([6 / (math.pi * k) ** 2 * first ** (k * k) for k in _HARMONICS]).sum(0)
    swing = (ell.imag[:, None] * lags).cos() * torch.sinc(ell.imag[:, None] * weights / math.tau)
    extra = (swing * (ell.real[:, None] * lags).exp() * saw * weights).sum(1)
    return torch.ones_like(square).masked_scatter(where, (1 + 2 * extra).clamp(min=0.05))


def _blocks(like: Tensor) -> tuple[Tensor, Tensor]:
    """Return lags at the middle of blocks of lags, and how many each has."""
    ends = [float(lag) + 0.5 for lag in range(_NEAR + 1)]
    while ends[-1] < _REACH:
        ends.append(math.floor(ends[-1] * _WIDER) + 0.5)
    edges = like.new_tensor(ends)
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


def input_power(recurrence: Recurrence, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return |b|² and b² of the stored modes, (channel, mode), means over the inputs of a layer that has many.

    Where an input gates b, it is Δ or 1, of unknown phase.
    """
    ell, B, step = recurrence.log_eigenvalues[chunk], recurrence.input_matrix, recurrence.step
    if B is None:
        size = torch.ones_like(ell.real)
        if step is not None:
            size = step.expand(recurrence.channels, recurrence.modes)[chunk].to(size).square()
        return size, torch.zeros_like(ell)
    if recurrence.layout == "many inputs":
        return B.abs().square().mean(1)[None], B.square().mean(1)[None]
    B = B.expand_as(recurrence.log_eigenvalues)[chunk]
    return B.abs().square(), B.square()
