"""Layers with many inputs and outputs (LRU, S5): python -m tests.benchmarks.many_inputs_speed [--device cuda]

Horizon and bands of one layer against QR factors of copies, which take modes⁴ operations, in one run; then the
installed commands on checkpoints of six layers, from a folder of their own. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ssmdiag.assessment.memory import assess_memory, lag_edges
from ssmdiag.kernel.energy import band_energy, horizon
from ssmdiag.kernel.powers import MAX_LAG
from ssmdiag.recurrence.modal import Recurrence
from tests.benchmarks.kernel_speed import best_of
from tests.kernel.many_inputs import as_copies, many_inputs

CONTEXT = 4096
LAYERS = 6
MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
processor, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
print(f"{time.perf_counter() - start:.1f} s, {processor:.1f} s of processor, {peak:,.0f} MiB, exit {code}")
"""
KINDS = ("ring", "hippo", "boundary", "cancelling to 1e-6")


def on(device: str, recurrence: Recurrence) -> Recurrence:
    moved = {field.name: getattr(recurrence, field.name) for field in fields(recurrence)}
    return replace(recurrence, **{name: x.to(device) for name, x in moved.items() if isinstance(x, torch.Tensor)})


def save_lru(path: Path, width: int, modes: int, layers: int = LAYERS) -> None:
    """Write an LRU as it is drawn: a ring from 0.9 to 0.999."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        uniform, phase = torch.rand(2, modes, generator=generator, dtype=torch.float64)
        rate = -0.5 * (uniform * (0.999**2 - 0.9**2) + 0.9**2).log()
        own = {
            "nu_log": rate.log(),
            "theta_log": (2 * math.pi * phase).log(),
            "gamma_log": (-(-2 * rate).expm1()).log() / 2,
            "D": torch.randn(width, generator=generator),
        }
        for part in ("re", "im"):
            own[f"B_{part}"] = torch.randn(modes, width, generator=generator) / math.sqrt(2 * width)
            own[f"C_{part}"] = torch.randn(width, modes, generator=generator) / math.sqrt(modes)
        state |= {f"layers.{layer}.seq.{name}": values.float() for name, values in own.items()}
    save_file(state, path)


def save_s5(path: Path, width: int, modes: int, layers: int = LAYERS) -> None:
    """Write an S5 with one mode of each conjugate pair and steps from 0.001 to 0.1."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for layer in range(layers):
        own = {
            "Lambda_re": torch.full((modes,), -0.5),
            "Lambda_im": math.pi * (torch.arange(modes) + 0.5),
            "log_step": math.log(1e-3) + math.log(100) * torch.rand(modes, 1, generator=generator),
            "B": torch.randn(modes, width, 2, generator=generator) / math.sqrt(2 * width),
            "C": torch.randn(width, modes, 2, generator=generator) / math.sqrt(modes),
            "D": torch.randn(width, generator=generator),
        }
        state |= {f"layers.{layer}.seq.{name}": values for name, values in own.items()}
    save_file(state, path)


def ask(recurrence: Recurrence, edges: torch.Tensor) -> tuple[float, float]:
    """Return the horizon and the seconds that it and the energy in all bins took."""
    start = time.perf_counter()
    found = float(horizon(recurrence, max_lag=MAX_LAG).lags)
    band_energy(recurrence, edges)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - start


def compare_routes(device: str, most: int) -> None:
    edges = lag_edges(CONTEXT)
    for modes in (64, 128, 256, 512, 1024):
        for kind in KINDS:
            recurrence = on(device, many_inputs(kind, modes=modes, inputs=modes, outputs=modes))
            lags, quick = min(ask(recurrence, edges) for _ in range(3))
            said = f"{kind}, {modes} × {modes} × {modes}: horizon and {len(edges) - 1} bins {quick:.3f} s"
            if modes <= most:
                start = time.perf_counter()
                copies = as_copies(recurrence)
                found, slow = ask(copies, edges)[0], time.perf_counter() - start
                said += f"; by copies {slow:.2f} s, {slow / quick:,.0f}× as fast; horizons {lags:,.0f} and {found:,.0f}"
            print(said, flush=True)
    layer = on(device, many_inputs(modes=512, inputs=512, outputs=512))
    print(f"with its law, 512 × 512 × 512: {best_of(2, lambda: assess_memory(layer, CONTEXT)):.3f} s")


def run_commands(device: str) -> None:
    """Run the installed commands; seconds and memory include starting Python and torch."""
    command = Path(sys.executable).with_name("ssmdiag")
    files = ((save_lru, 256, 256), (save_s5, 256, 256), (save_lru, 512, 512), (save_s5, 512, 512))
    with tempfile.TemporaryDirectory() as folder:
        for save, width, modes in files:
            name = f"{save.__name__.removeprefix('save_')}-{modes}.safetensors"
            save(Path(folder, name), width, modes)
            for asked in (("inspect", name), ("check", name), ("kernel", name)):
                # By a small process: a child's peak begins with that of its parent.
                figures = subprocess.run(
                    [sys.executable, "-c", MEASURED, command, *asked, "--device", device],
                    cwd=folder,
                    capture_output=True,
                    check=True,
                    text=True,
                )
                print(
                    f"ssmdiag {' '.join(asked)}, {LAYERS} layers of {width} × {modes}: {figures.stdout}",
                    end="",
                    flush=True,
                )


def main() -> None:
    """Print the figures of one device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--copies", type=int, default=128, help="modes up to which the slow route is run too")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    compare_routes(arguments.device, arguments.copies)
    run_commands(arguments.device)


if __name__ == "__main__":
    main()
