"""Time of the whole process against importing torch: python -m tests.benchmarks.startup_speed [--pairs N]

`ssmdiag check` of one small file beside `python -c 'import torch'`, in turn, so that a busy machine slows both.
Time on the processor, too: with other processes at work it is the steadier of the two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

EXAMPLE = Path(__file__).parents[2] / "examples" / "lru-digits" / "step-02000.safetensors"


def write_small(path: Path) -> Path:
    """Write a Mamba of one layer, 8 channels and 16 modes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"dt_proj.bias": (8,), "dt_proj.weight": (8, 2), "x_proj.weight": (34, 8), "D": (8,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["dt_proj.bias"] -= 4
    state["A_log"] = torch.arange(1, 17).float().log().repeat(8, 1)
    save_file({f"layers.0.mixer.{name}": value for name, value in state.items()}, path)
    return path


def seconds(command: Sequence[str]) -> tuple[float, float]:
    """Return seconds on the clock and on the processor."""
    before, start = os.times(), time.perf_counter()
    run = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    end, after = time.perf_counter(), os.times()
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{command} ended with {run.returncode}")
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    return end - start, busy


def main() -> None:
    """Print the medians, and their ratios to importing torch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    check = [sys.executable, "-m", "ssmdiag", "check", "--isolated", "--device", asked.device]
    with tempfile.TemporaryDirectory() as directory:
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "check, Mamba of 1 layer": [*check, str(write_small(Path(directory) / "small.safetensors"))],
            "check, LRU of 3 layers": [*check, str(EXAMPLE)],
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for pair in range(asked.pairs + 1):
            for name, command in commands.items():
                one = seconds(command)
                taken[name] += [one] * (pair > 0)  # the first writes bytecode, and fills the system's cache
    reference = [statistics.median(column) for column in zip(*taken["import torch"], strict=True)]
    for name, times in taken.items():
        clock, busy = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name:<24} {clock:.2f} s, {clock / reference[0]:.2f} × import torch; "
            f"processor {busy:.2f} s, {busy / reference[1]:.2f} ×"
        )


if __name__ == "__main__":
    main()
