"""Speed and accuracy of memory functions and capacities: python -m tests.benchmarks.capacity_speed [--device cuda]

Ratios are taken in one run, on whatever else the machine is doing; nothing is asserted.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from ssmdiag.capacity.capacity import assess_capacity, summarise_capacity
from ssmdiag.capacity.full_spectrum import full_spectrum
from ssmdiag.capacity.hankel import hankel_singular_values
from ssmdiag.capacity.reconstruction import memory_function
from ssmdiag.recurrence.modal import Recurrence
from tests.benchmarks.kernel_speed import best_of, diagonal

CHANNELS, LAGS = 256, 16_384
STEPPED = 256
MANY = 300_000


def layer(ell: Tensor) -> Recurrence:
    return Recurrence("layer", "benchmark", "benchmark", ell.to(torch.complex128), time_invariant=True)


def spectra(device: str) -> dict[str, Recurrence]:
    generator = torch.Generator().manual_seed(0)
    step = (10 ** (-3 + 2 * torch.rand(CHANNELS, 1, generator=generator, dtype=torch.float64))).to(device)
    index = torch.arange(64, dtype=torch.float64, device=device)
    half = -0.5 * step.expand(-1, 64)
    return {
        "64 real modes": layer(-step * (index + 1)),
        "32 pairs, 64 modes": layer(torch.complex(half, step * math.pi * (index + 0.5))[:, :32]),
        "64 pairs, 128 modes": layer(torch.complex(half, step * math.pi * (index + 0.5))),
    }


def stepped(recurrence: Recurrence, lags: int) -> Tensor:
    """Return MF at the first lags by the cascade, section after section, one step after another."""
    found = full_spectrum(recurrence)
    ell = found.log_eigenvalues.T
    if ell.is_complex():  # the same pairs in every channel
        ell = torch.cat([ell, ell.conj()[found.paired[0]]])
    gain, decay = (-(2 * ell.real).expm1()).sqrt(), ell.exp()
    state = torch.zeros_like(decay)
    values = torch.empty(lags, ell.shape[1], dtype=torch.float64, device=ell.device)
    for lag in range(lags):
        signal = torch.full_like(decay[0], 1.0 if lag == 0 else 0.0)
        for k in range(len(decay)):
            before = state[k]
            state[k], signal = decay[k] * before + gain[k] * signal, gain[k] * before - decay[k].conj() * signal
        values[lag] = state.abs().square().sum(0)
    return values.T


def compare_memory(device: str) -> None:
    for name, recurrence in spectra(device).items():
        seconds = best_of(3, lambda r=recurrence: memory_function(r, range(LAGS)))  # type: ignore[misc]
        found = memory_function(recurrence, range(LAGS))
        start = time.perf_counter()
        loop = stepped(recurrence, STEPPED)
        slow = (time.perf_counter() - start) * LAGS / STEPPED
        error = float((found.values[:, :STEPPED] - loop).abs().max())
        print(
            f"{name}, {CHANNELS} channels × {LAGS:,} lags: {seconds:.2f} s, |Σ MF − N| "
            f"{float((found.total - found.modes).abs().max()):.0e}; stepped {slow:,.0f} s ({STEPPED} steps taken), "
            f"{slow / seconds:,.0f}× as fast; they differ by {error:.0e}"
        )


def time_layers(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    for decade in (-3, -1):
        step = (10 ** (decade + 2 * torch.rand(MANY, 1, generator=generator, dtype=torch.float64))).to(device)
        many = layer(-step * torch.arange(1, 17, dtype=torch.float64, device=device))
        start, used = time.perf_counter(), time.process_time()
        summary = summarise_capacity(assess_capacity(many, 4096))
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(
            f"{MANY:,} channels × 16 modes, Δ 1e{decade} to 1e{decade + 2}: {seconds:.1f} s, {used:.1f} s of processor"
        )
        print(f"  {summary.sentence}")
    for modes in (64, 256, 512):
        index = torch.arange(modes, dtype=torch.float64, device=device)
        square = 0.81 + (0.998 - 0.81) * (index + 0.5) / modes
        ring = layer(torch.complex(square.log() / 2, 2 * math.pi * (index * 0.618033988 % 1))[None])
        seconds = best_of(1, lambda r=ring: assess_capacity(r, 4096))  # type: ignore[misc]
        print(f"one ring of {modes} stored modes: {seconds:.2f} s")
    for name in ("S4D-Lin", "slow ring"):
        recurrence = diagonal(name, device)
        seconds = best_of(1, lambda r=recurrence: assess_capacity(r, LAGS))  # type: ignore[misc]
        hankel = best_of(1, lambda r=recurrence: hankel_singular_values(r))  # type: ignore[misc]
        print(f"{name}, {recurrence.channels} × {recurrence.modes}: {seconds:.2f} s; Hankel {hankel:.2f} s")


def main() -> None:
    """Print the figures of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    compare_memory(device)
    time_layers(device)


if __name__ == "__main__":
    main()
