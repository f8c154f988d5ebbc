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
from typing import TYPE_CHECKING

from ssmdiag.retrain.tasks.interface import Task, TaskData, TaskSettings

if TYPE_CHECKING:
    from torch import Tensor

LENGTH, SAMPLES, VALIDATION = 100, 12_800, 1_280
"""As in the released configuration."""


def _exp(t: Tensor) -> Tensor:
    return (-t).exp()


def _poly(t: Tensor) -> Tensor:
    return (1 + 0.1 * t) ** -1.1


def _shift(t: Tensor) -> Tensor:
    return ((t > 9) & (t < 11)).double()


def _twoparts(t: Tensor) -> Tensor:
    return (-t).exp() + (-(t - 9).square()).exp()


def _airy(t: Tensor) -> Tensor:
    import torch

    return torch.special.airy_ai(t - 6)


def _maker(rho: Callable[[Tensor], Tensor]) -> Callable[[TaskSettings], TaskData]:
    def make(settings: TaskSettings) -> TaskData:
        import torch

        length = settings.length or LENGTH
        kernel = rho(torch.arange(length, dtype=torch.float64))
        count = settings.samples or SAMPLES
        generator = torch.Generator().manual_seed(settings.seed)
        x = torch.randn(count + VALIDATION, length, generator=generator, dtype=torch.float64)
        y = filter_with(kernel, x)
        x, y = x.float()[..., None], y.float()[..., None]
        return TaskData(
            x[:count], y[:count], x[count:], y[count:], "squared error", "every step", outputs=1, kernel=kernel
        )

    return make


def filter_with(kernel: Tensor, x: Tensor) -> Tensor:
    """Return Σ_s K_s x_{t−s}, (sample, step), for x (sample, step) and K (lag,)."""
    import torch

    size = 2 ** math.ceil(math.log2(2 * x.shape[1]))
    return torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(kernel, n=size), n=size)[:, : x.shape[1]]


_SOURCE = "P1, arXiv 2311.14495 §4.1"
TASKS = (
    Task("lf-exp", "a kernel that decays exponentially", _SOURCE, _maker(_exp)),
    Task("lf-poly", "a kernel that decays like a power of the lag", _SOURCE, _maker(_poly)),
    Task("lf-shift", "a kernel of one late lag", _SOURCE, _maker(_shift)),
    Task("lf-twoparts", "an early and a late part", _SOURCE, _maker(_twoparts)),
    Task("lf-airy", "an oscillating kernel, Airy's function", _SOURCE, _maker(_airy)),
)
