"""A recurrence really run with its state rounded at every step, and what a linear readout rebuilds of its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """One channel: λ̄ and b (mode,) complex128, and the white input it is given."""

    decay: Tensor
    drive: Tensor
    mean: float = 0.0
    scale: float = 1.0
    sequences: int = 2000
    window: int = 16


def own_scale(run: Run, deviations: float = 4.0) -> Tensor:
    """Return |μ| + 4σ of the real and imaginary parts, (2, mode), summed over the impulse response."""
    state, squares, total = run.drive.clone(), torch.zeros(2, len(run.decay)).double(), torch.zeros_like(run.drive)
    while float((state.abs() / run.drive.abs().clamp(min=1e-300)).max()) > 1e-9:
        squares += torch.stack([state.real, state.imag]).square()
        total, state = total + state, state * run.decay
    mean = run.mean * torch.stack([total.real, total.imag]).abs()
    return run.scale * (mean + deviations * squares.sqrt())


def rounding_of(state_dtype: str, largest: Tensor) -> Round:
    """Return what a state (number, sequence) is rounded by; `largest` (number, 1) or (1, 1) serves an int8 scale."""
    if state_dtype == "int8":
        step = (largest / 127).clamp(min=1e-30).float()
        return lambda state: (state / step).round().clamp(-127, 127) * step
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[state_dtype]
    return lambda state: state.to(dtype).float()


def rebuilt(run: Run, rounding: Round, seed: int = 0) -> float:
    """Return Σ_τ R² of regressions of u_{t−τ} on the rounded state, less what chance adds to it."""
    generator = torch.Generator().manual_seed(seed)
    modes, slowest = len(run.decay), float(run.decay.abs().max())
    reach = int(min(8192.0, max(64.0, 5 / (1 - slowest))))
    real, imag = run.decay.real.float()[:, None], run.decay.imag.float()[:, None]
    writes = run.scale * torch.cat([run.drive.real, run.drive.imag]).float()[:, None]
    inputs = torch.randn(2 * reach + run.window, run.sequences, generator=generator)
    state = torch.cat([run.drive / (1 - run.decay)] * 1).mul(run.mean * run.scale)
    state = rounding(torch.cat([state.real, state.imag]).float()[:, None].expand(-1, run.sequences).clone())
    last = []
    for position, given in enumerate(inputs):
        first, second = state[:modes], state[modes:]
        turned = torch.cat([real * first - imag * second, real * second + imag * first])
        state = rounding(turned + writes * (given + run.mean))
        if position >= 2 * reach:
            last.append(state)
    rows = torch.stack(last).double()
    alive = torch.cat([torch.ones(modes, dtype=torch.bool), run.decay.imag.abs() > 1e-12])
    rows = (rows - rows.mean((0, 2), keepdim=True))[:, alive]
    spread = rows.square().mean((0, 2)).sqrt()
    rows = rows[:, spread > 0] / spread[spread > 0][:, None]
    if not rows.shape[1]:
        return 0.0
    samples = run.window * run.sequences
    covariance = torch.einsum("tis,tjs->ij", rows, rows) / samples
    cross = torch.zeros(reach, rows.shape[1]).double()
    for place in range(run.window):
        past = inputs[2 * reach + place - torch.arange(reach)]
        cross += (past @ rows[place].float().mT).double()
    values, basis = torch.linalg.eigh(covariance)
    kept = values > 1e-11 * values[-1]
    explained = float(((cross / samples) @ basis[:, kept]).square().div(values[kept]).sum())
    return explained - reach * int(kept.sum()) / samples
