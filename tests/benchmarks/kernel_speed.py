"""Speed and accuracy of kernels, horizons and band energies: python -m tests.benchmarks.kernel_speed [--device cuda]

Ratios are taken in one run, on whatever else the machine is doing; nothing is asserted.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ssmdiag.kernel.energy import band_energy, horizon
from ssmdiag.kernel.kernel import compute_kernel
from ssmdiag.kernel.powers import modal_weights, retention
from ssmdiag.recurrence.modal import Recurrence

CHANNELS, MODES, LAGS = 256, 32, 16_384
MANY = 300_000


def best_of(count: int, call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of `count` calls, after one to warm up."""
    seconds = []
    for _ in range(count + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def diagonal(name: str, device: str) -> Recurrence:
    """Return S4D-Lin as it is initialised, or a ring of modes that outlast the kernel."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(CHANNELS, 1, generator=generator, dtype=torch.float64)
    step = 10 ** (-3 + 2 * spread)
    if name == "S4D-Lin":
        ell = torch.complex(-0.5 * step.expand(-1, MODES), step * math.pi * torch.arange(MODES, dtype=torch.float64))
    else:
        rate = 10 ** (-6 + 2 * torch.rand(CHANNELS, MODES, generator=generator, dtype=torch.float64))
        ell = torch.complex(-rate, 2 * math.pi * torch.rand(CHANNELS, MODES, generator=generator, dtype=torch.float64))
    C = torch.randn(1, CHANNELS, MODES, generator=generator, dtype=torch.complex128)
    return Recurrence(
        "layer",
        "benchmark",
        name,
        ell.to(device),
        time_invariant=True,
        kernel_factor=2.0,
        input_matrix=step.to(torch.complex128).expand(-1, MODES).to(device),
        output_matrix=C.to(device),
    )


def direct(recurrence: Recurrence) -> Tensor:
    """Return Re Σ w exp(ℓt) in complex64, over all lags at once, as S4's fallback does."""
    ell, weights = recurrence.log_eigenvalues.to(torch.complex64), modal_weights(recurrence)[0].to(torch.complex64)
    exponent = ell[..., None] * torch.arange(LAGS, device=ell.device)
    return torch.einsum("hn,hnl->hl", weights, exponent.exp()).real


def summed(recurrence: Recurrence) -> Tensor:
    """Return Re Σ w exp(ℓt) in complex128, a channel at a time: what errors are measured against."""
    lags = torch.arange(LAGS, device=recurrence.log_eigenvalues.device)
    weights = modal_weights(recurrence)[0]
    rows = zip(recurrence.log_eigenvalues, weights, strict=True)
    return torch.stack([(w[:, None] * (ell[:, None] * lags).exp()).sum(0).real for ell, w in rows])


def compare_kernels(device: str) -> None:
    for name in ("S4D-Lin", "slow ring"):
        recurrence = diagonal(name, device)
        exact = summed(recurrence)
        largest = exact.abs().max()
        slow = best_of(1, lambda r=recurrence: direct(r))  # type: ignore[misc]
        slow_error = float((direct(recurrence) - exact).abs().max() / largest)
        for product in (torch.float64, torch.float32):
            fast = best_of(7, lambda r=recurrence, p=product: compute_kernel(r, LAGS, product=p))  # type: ignore[misc]
            error = float((compute_kernel(recurrence, LAGS, product=product).values[0] - exact).abs().max() / largest)
            rows = torch.randn(CHANNELS, 128, 2 * MODES, dtype=product, device=device)
            # Like the kernel's own, the product writes into memory fresh from the system.
            alone = best_of(7, lambda a=rows: torch.bmm(a, a.mT).to(torch.float32))  # type: ignore[misc]
            print(
                f"{name}, product in {str(product)[6:]}: {fast * 1e3:.1f} ms, error {error:.1e}; direct "
                f"{slow * 1e3:,.0f} ms, {slow_error:.1e}: {slow / fast:,.0f}× as fast, "
                f"{slow_error / max(error, 1e-300):,.0f}× as accurate; the matrix product alone takes "
                f"{alone * 1e3:.1f} ms"
            )


def time_horizons(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(MANY, 1, generator=generator, dtype=torch.float64).to(device)
    edges = sorted({round(10 ** (k / 10)) for k in range(50)})
    for decade in (3, 9):
        rate = 10 ** (scale - decade) * torch.arange(1, 17, dtype=torch.float64, device=device)
        ell = (-rate).to(torch.complex128)
        recurrence = retention(Recurrence("layer", "benchmark", "real", ell, time_invariant=False))
        found = horizon(recurrence)
        seconds = best_of(3, lambda r=recurrence: horizon(r))  # type: ignore[misc]
        print(
            f"horizons of {MANY:,} channels × 16 modes, {found.lags.min():,.0f} to {found.lags.max():,.0f} lags: "
            f"{seconds:.2f} s"
        )
    seconds = best_of(1, lambda: band_energy(recurrence, edges))
    print(f"energy in {len(edges) - 1} bins of the same: {seconds:.2f} s")


def main() -> None:
    """Print the figures of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    compare_kernels(device)
    time_horizons(device)


if __name__ == "__main__":
    main()
