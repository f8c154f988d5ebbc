"""S7 (Soydan et al., 2024, arXiv 2410.03464) as lrnnx writes it: a diagonal state whose eigenvalues the input moves.

    h_t = Λ̄_t h_{t−1} + B_tᵀ x_t + b_t,    λ̄_t = 1 − 1/(w_t² + 1/2),    w_t = w + (W x_t)_{first N rows}

| in the code | tensor | shape | role |
|---|---|---|---|
| w | `base_params` | mode | λ̄ = 1 − 1/(w² + 1/2) in [−1, 1) where the input is zero |
| W | `x_proj.weight` | N + 2 H N + H + N, model | rows for w, B, C, D and b; without a bias |

Source: SforAiDl/lrnnx 1e79400, models/ltv/s7.py:63-92, 156-182, 233-236. A negative λ̄ alternates in sign.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling, Steering, Tensor
from ssmdiag.recurrence.clock import Clock
from ssmdiag.recurrence.discretisation import as_complex


def read(layer: Layer) -> Iterator[Recurrence]:
    lost = layer.weight("base_params", "best")  # 1 − λ̄
    size = (-lost).log1p().where(lost < 1, (lost - 1).log())
    log_eigenvalues = as_complex(size) + 1j * math.pi * (lost > 1).to(lost.dtype)
    yield layer.recurrence(log_eigenvalues[:, None], operating_point="zero input")


def clock(module: Any, input: Tensor) -> Clock:
    """Of the magnitude of λ̄: its sign is not a decay."""
    moved = module.x_proj(module.in_proj(input))[..., : module.d_state].double() + module.base_params.double()
    lost = 1 / (moved.square() + 0.5)
    step = -((-lost).log1p().where(lost < 1, (lost - 1).log()))
    return Clock(step, step.new_ones(step.shape[-1], 1))


def steering(layer: Layer) -> Iterator[Steering]:
    yield Steering("decay, B and C", "x_proj.weight", needed=True)
    yield Steering("input", "in_proj.weight")


FAMILY = Family(
    name="s7",
    title="S7",
    paper="arXiv 2410.03464",
    memory="nominal",
    spellings=(Spelling("lrnnx", {"base_params": "mode", "x_proj.weight": "2*mode+2*mode*model+model model"}),),
    repositories=("SforAiDl/lrnnx",),
    read=read,
    clock=clock,
    steering=steering,
)
