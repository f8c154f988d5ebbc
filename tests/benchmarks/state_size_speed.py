"""Speed of S4D layers by modes a channel: python -m tests.benchmarks.state_size_speed [--device cuda] [MODES …]

Seconds for the orthonormal factor of one channel, beside a loop over its modes and their conjugates; for a layer's
horizons, laws and capacities; and for `check` of a file of two such layers in a process of its own, beside `import
torch`. Ratios are taken in one run, on whatever else the machine is doing; nothing is asserted. Processor time is that
of all cores.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from ssmdiag.assessment.assess import MOST_CAPACITIES
from ssmdiag.assessment.memory import assess_memory
from ssmdiag.capacity.capacity import affordable_channels, assess_capacity
from ssmdiag.kernel.orthonormal import orthonormal_factor
from ssmdiag.kernel.response import modal_terms
from ssmdiag.recurrence.channels import sample_channels
from ssmdiag.recurrence.modal import Recurrence
from tests.kernel.looped_factor import closed_spectrum, looped_factor

CHANNELS, CONTEXT = 64, 4096


def s4d(modes: int, device: str = "cpu") -> Recurrence:
    """Return S4D-Lin as it is initialised."""
    generator = torch.Generator().manual_seed(0)
    step = 10 ** (-3 + 2 * torch.rand(CHANNELS, 1, generator=generator, dtype=torch.float64))
    ell = torch.complex(-0.5 * step.expand(-1, modes), step * math.pi * torch.arange(modes, dtype=torch.float64))
    C = torch.complex(*torch.randn(2, 1, CHANNELS, modes, generator=generator, dtype=torch.float64))
    return Recurrence(
        "layer",
        "s4d",
        "benchmark",
        ell.to(device),
        time_invariant=True,
        kernel_factor=2.0,
        input_matrix=step.to(torch.complex128).expand(-1, modes).to(device),
        output_matrix=C.to(device),
        dtype="float32",
    )


def write_s4d(path: Path, modes: int, layers: int = 2) -> None:
    """Write layers as S4D's minimal code stores them."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for layer in range(layers):
        kernel = f"layers.{layer}.kernel."
        tensors[kernel + "log_dt"] = math.log(1e-3) + torch.rand(CHANNELS, generator=generator) * math.log(100)
        tensors[kernel + "log_A_real"] = torch.full((CHANNELS, modes), math.log(0.5))
        tensors[kernel + "A_imag"] = math.pi * torch.arange(modes).float().repeat(CHANNELS, 1)
        tensors[kernel + "C"] = torch.randn(CHANNELS, modes, 2, generator=generator)
    save_file(tensors, path)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return what a call takes, by the clock and of the processor."""
    start, used = time.perf_counter(), time.process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - used


def process(*arguments: str) -> tuple[float, float]:
    """Return the same of a process of its own."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], check=False, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, used


def main() -> None:
    """Print the figures of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modes", nargs="*", type=int, default=[32, 64, 128, 256, 512])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads, {CHANNELS} channels")
    small = s4d(4, arguments.device)
    for warm in (assess_memory, assess_capacity):
        warm(small, CONTEXT)
    importing = process("-c", "import torch")
    print(f"import torch: {importing[0]:.1f} s, {importing[1]:.1f} of processor")
    for modes in arguments.modes:
        layer = s4d(modes, arguments.device)
        memory = seconds(lambda layer=layer: assess_memory(layer, CONTEXT))  # type: ignore[misc]
        some = sample_channels(layer, affordable_channels(modes, MOST_CAPACITIES))
        capacity = seconds(lambda some=some: assess_capacity(some, CONTEXT))  # type: ignore[misc]
        ell, loop_ell = modal_terms(layer, slice(1))[0], closed_spectrum(layer, 0)[0]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as `share_out` has it
        factor = seconds(lambda ell=ell: orthonormal_factor(ell))[1]  # type: ignore[misc]
        loop = seconds(lambda ell=loop_ell: looped_factor(ell))[1]  # type: ignore[misc]
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            write_s4d(path, modes)
            check = process("-m", "ssmdiag", "check", str(path), "--device", arguments.device)
        print(f"{modes} modes: factor {factor * 1e3:.1f} ms, by a loop {loop / factor:.0f} times as long")
        print(f"  horizons and laws {memory[0]:.2f} s, {memory[1]:.2f} of processor")
        print(f"  capacity of {some.channels} channels {capacity[0]:.2f} s, {capacity[1]:.2f} of processor")
        after, used = check[0] - importing[0], check[1] - importing[1]
        print(f"  check of two layers {after:.1f} s after import torch, {used:.1f} of processor")


if __name__ == "__main__":
    main()
