"""When the first JSON line of many checkpoints is there: python -m tests.benchmarks.first_line [--files N] [--modes N]

The files are S4D models of 4 layers of 64 channels each; start-up is stated apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_s4d(path: Path, modes: int, seed: int, layers: int = 4, channels: int = 64) -> Path:
    """Write an S4D-Lin whose steps are log-uniform in 0.001 to 0.1."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for layer in range(layers):
        state |= {
            f"s4_layers.{layer}.kernel.log_dt": torch.rand(channels, generator=generator) * 4.6 - 6.9,
            f"s4_layers.{layer}.kernel.log_A_real": torch.full((channels, modes), 0.5).log(),
            f"s4_layers.{layer}.kernel.A_imag": torch.pi * torch.arange(modes).float().repeat(channels, 1),
            f"s4_layers.{layer}.kernel.C": torch.randn(channels, modes, 2, generator=generator),
        }
    save_file(state, path)
    return path


def main() -> None:
    """Print when the first line came, and the last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--modes", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_alone = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as directory:
        paths = [
            write_s4d(Path(directory) / f"step-{number}.safetensors", asked.modes, number)
            for number in range(asked.files)
        ]
        command = [sys.executable, "-m", "ssmdiag", "inspect", "-f", "jsonl", "--device", asked.device]
        start = time.perf_counter()
        with subprocess.Popen([*command, *map(str, paths)], stdout=subprocess.PIPE) as run:
            assert run.stdout is not None
            came = [time.perf_counter() - start for _ in run.stdout]
    whole = time.perf_counter() - start
    if run.returncode or len(came) != asked.files:
        raise RuntimeError(f"ended with {run.returncode} after {len(came)} lines")
    print(
        f"{asked.files} files of 4 × 64 × {asked.modes}: first line after {came[0]:.1f} s, "
        f"{100 * came[0] / whole:.1f} % of {whole:.1f} s, last at {came[-1]:.1f} s; importing torch takes "
        f"{torch_alone:.1f} s"
    )


if __name__ == "__main__":
    main()
