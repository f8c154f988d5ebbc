"""Linear functionals: y_t = Σ_{s≤t} ρ(s) x_{t−s}, white noise in (P1, arXiv 2311.14495, §4.1).

| task | ρ(t) | memory |
|---|---|---|
| lf-exp | e^−t | exponential: one mode suffices |
| lf-poly | (1 + 0.1 t)^−1.1 | polynomial: the curse of memory |
| lf-shift | 1 for 9 < t < 11 | one late lag |
| lf-twoparts | e^−t + e^−(t−9)² | an early and a late part |
| lf-airy | Ai(t − 6) | oscillates and decays like a power |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ssmdiag.retrain.tasks.interface import TargetLaw, Task, TaskData, TaskSettings

LENGTH, SAMPLES, VALIDATION = 100, 12_800, 1_280
"""As in the released configuration."""


def _airy(t: Tensor) -> Tensor:
    x = t - 6
    # torch's own is wrong in the ninth digit below 0; its series there loses four digits of sixteen.
    return torch.special.airy_ai(x).where(x >= 0, _airy_series(x.clamp(max=0)))


def _airy_series(x: Tensor) -> Tensor:
    """Return Ai(x) = Ai(0) f(x) + Ai′(0) g(x) by the power series of f = 1 + x³/6 + … and g = x + x⁴/12 + …."""
    f, g = torch.ones_like(x), x.clone()
    total = _AIRY_AT_0[0] * f + _AIRY_AT_0[1] * g
    for k in range(1, 40):
        f = f * x**3 / ((3 * k - 1) * (3 * k))
        g = g * x**3 / ((3 * k) * (3 * k + 1))
        total = total + _AIRY_AT_0[0] * f + _AIRY_AT_0[1] * g
    return total


_AIRY_AT_0 = (0.355028053887817239, -0.258819403792806798)
"""Ai(0) and Ai′(0)."""


def _maker(rho: Callable[[Tensor], Tensor], law: TargetLaw | None = None) -> Callable[[TaskSettings], TaskData]:
    def make(settings: TaskSettings) -> TaskData:
        length = settings.length or LENGTH
        kernel = rho(torch.arange(length, dtype=torch.float64))
        count = settings.samples or SAMPLES
        generator = torch.Generator().manual_seed(settings.seed)
        x = torch.randn(count + VALIDATION, length, generator=generator, dtype=torch.float64)
        y = filter_with(kernel, x)
        x, y = x.float()[..., None], y.float()[..., None]
        return TaskData(
            x[:count], y[:count], x[count:], y[count:],
            "squared error", "every step", outputs=1, kernel=kernel, law=law,
        )  # fmt: skip

    return make


def filter_with(kernel: Tensor, x: Tensor) -> Tensor:
    """Return Σ_s K_s x_{t−s}, (sample, step), for x (sample, step) and K (lag,)."""
    size = 2 ** math.ceil(math.log2(2 * x.shape[1]))
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(kernel, n=size), n=size)[:, : x.shape[1]]


_SOURCE = "P1, arXiv 2311.14495 §4.1"
TASKS = (
    Task(
        "lf-exp",
        "a kernel that decays exponentially",
        _SOURCE,
        _maker(lambda t: (-t).exp(), TargetLaw("exponential", rate=1.0)),
    ),
    Task(
        "lf-poly",
        "a kernel that decays like a power of the lag",
        _SOURCE,
        _maker(lambda t: (1 + 0.1 * t) ** -1.1, TargetLaw("polynomial", exponent=1.1, offset=10.0)),
    ),
    Task("lf-shift", "a kernel of one late lag", _SOURCE, _maker(lambda t: ((t > 9) & (t < 11)).double())),
    Task(
        "lf-twoparts",
        "an early and a late part",
        _SOURCE,
        _maker(lambda t: (-t).exp() + (-(t - 9).square()).exp()),
    ),
    Task("lf-airy", "an oscillating kernel, Airy's function", _SOURCE, _maker(_airy)),
)
