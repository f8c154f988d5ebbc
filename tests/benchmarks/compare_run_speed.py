"""Time and memory of comparing 10 and 100 checkpoints of Mamba-130M: tests.benchmarks.compare_run_speed [--device]

Each file has the recurrent tensors of Mamba-130M (24 layers, 1536 channels, 16 modes) and a hole where its
other 250 MB would be. Layer 5 drifts to the boundary.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import numpy as np

LAYERS, CHANNELS, MODES = 24, 1536, 16
REST = 125_000_000
"""bfloat16 values of all other weights."""

_COMPARE = r"""
import json, pathlib, re, sys, time
start = time.perf_counter()
from ssmdiag import compare_run
imported = time.perf_counter()
run = compare_run(sys.argv[3:], memory=sys.argv[1], device=sys.argv[2])
end = time.perf_counter()
# On Linux ru_maxrss is carried over from the process that started this one; VmHWM is not.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({
    "import_s": imported - start, "compare_s": end - imported, "peak_mb": peak, "verdict": run.verdict.value,
    "converging": [layer.name for layer in run.layers if layer.verdict.value == "converging"],
}))
"""


def write_run(directory: Path, count: int) -> list[Path]:
    """Write the checkpoints of a run of 1,000 steps each and return their paths."""
    random = np.random.default_rng(0)
    steps = np.exp(random.uniform(np.log(0.001), np.log(0.1), (LAYERS, CHANNELS)))
    bias = (steps + np.log(-np.expm1(-steps))).astype(np.float32)
    log_rate = np.log(np.tile(np.arange(1, MODES + 1, dtype=np.float32), (LAYERS, CHANNELS, 1)))
    paths = []
    for number in range(count):
        log_rate += 0.002 * random.standard_normal(log_rate.shape).astype(np.float32)
        log_rate[5] -= 0.03
        path = directory / f"step-{1000 * number}.safetensors"
        _write(path, log_rate, bias, 1000 * number)
        paths.append(path)
    return paths


def _write(path: Path, log_rate: np.ndarray, bias: np.ndarray, step: int) -> None:
    arrays = {}
    for layer in range(LAYERS):
        arrays[f"backbone.layers.{layer}.mixer.A_log"] = log_rate[layer]
        arrays[f"backbone.layers.{layer}.mixer.dt_proj.bias"] = bias[layer]
    header: dict[str, object] = {"__metadata__": {"step": str(step)}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + 4 * prod(array.shape)
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [start, end]}
    header["backbone.embedding.weight"] = {"dtype": "BF16", "shape": [REST], "data_offsets": [end, end + 2 * REST]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).tobytes())
        file.truncate(8 + len(text) + end + 2 * REST)


def measure(paths: list[Path], memory: str, device: str) -> dict[str, float]:
    """Return seconds and peak resident memory of a comparison in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", _COMPARE, memory, device, *map(str, paths)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # as the command line sets it
    )
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def main() -> None:
    """Print the figures for 10 and 100 checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    with tempfile.TemporaryDirectory() as directory:
        paths = write_run(Path(directory), 100)
        for memory in ("none", "ends"):
            for count in (10, 100):
                figures = measure(paths[:count], memory, device)
                print(
                    f"{count:>3} checkpoints, memory at {memory}: {figures['compare_s']:.1f} s, "
                    f"peak {figures['peak_mb']:.0f} MB resident, {figures['verdict']}: {figures['converging']}"
                )


if __name__ == "__main__":
    main()
