"""Time and memory of diagnosing a checkpoint of 5.5 GB: python -m tests.benchmarks.inspect_2_8b [PATH]

The file has the tensors of Mamba-2.8B (64 layers, 5120 channels, 16 modes). It is sparse: A_log and
the bias of Δ hold values, the rest is a hole, which costs no disk and is never read.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import numpy as np

LAYERS, D_MODEL, D_INNER, N, DT_RANK, VOCABULARY = 64, 2560, 5120, 16, 160, 50280

MIXER = {
    "A_log": ("F32", (D_INNER, N)),
    "D": ("F32", (D_INNER,)),
    "conv1d.bias": ("BF16", (D_INNER,)),
    "conv1d.weight": ("BF16", (D_INNER, 1, 4)),
    "dt_proj.bias": ("BF16", (D_INNER,)),
    "dt_proj.weight": ("BF16", (D_INNER, DT_RANK)),
    "in_proj.weight": ("BF16", (2 * D_INNER, D_MODEL)),
    "out_proj.weight": ("BF16", (D_MODEL, D_INNER)),
    "x_proj.weight": ("BF16", (DT_RANK + 2 * N, D_INNER)),
}
WIDTHS = {"F32": 4, "BF16": 2}

_DIAGNOSE = r"""
import json, pathlib, re, resource, sys, time
start = time.perf_counter()
import torch
imported = time.perf_counter()
from ssmdiag import diagnose
result = diagnose(sys.argv[1])
end = time.perf_counter()
# On Linux ru_maxrss is carried over from the process that started this one; VmHWM is not.
status = pathlib.Path("/proc/self/status")
if status.exists():
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({
    "import_torch_s": imported - start, "diagnose_s": end - imported, "layers": len(result.layers),
    "bytes_read": result.bytes_read, "size": result.size,
    "peak_mb": peak,
}))
"""


def write_sparse_mamba(path: Path) -> Path:
    """Write the file, with S4D-real A and Δ log-uniform in 0.001 to 0.1, and return its path."""
    shapes = {
        "backbone.embedding.weight": ("BF16", (VOCABULARY, D_MODEL)),
        "backbone.norm_f.weight": ("BF16", (D_MODEL,)),
    }
    for layer in range(LAYERS):
        shapes |= {f"backbone.layers.{layer}.mixer.{name}": entry for name, entry in MIXER.items()}
        shapes[f"backbone.layers.{layer}.norm.weight"] = ("BF16", (D_MODEL,))
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + WIDTHS[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    a_log = np.log(np.tile(np.arange(1, N + 1, dtype=np.float32), (D_INNER, 1)))
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name in shapes:
            file.seek(8 + len(text) + header[name]["data_offsets"][0])  # type: ignore[index]
            if name.endswith("A_log"):
                file.write(a_log.tobytes())
            elif name.endswith("dt_proj.bias"):
                step = np.exp(random.uniform(np.log(0.001), np.log(0.1), D_INNER))
                bias = (step + np.log(-np.expm1(-step))).astype(np.float32)
                file.write((bias.view(np.uint32) >> 16).astype(np.uint16).tobytes())  # bfloat16
    return path


def measure(path: Path) -> dict[str, float]:
    """Return seconds, bytes read and peak resident memory of a diagnosis in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", _DIAGNOSE, str(path)], check=True, capture_output=True, text=True, timeout=300
    )
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def main() -> None:
    """Print the figures of a given file, or of one made for the purpose."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else write_sparse_mamba(Path(directory) / "model.safetensors")
        for _ in range(3):
            figures = measure(path)
            print(
                f"{figures['size'] / 1e9:.2f} GB, reads {figures['bytes_read'] / 1e6:.1f} MB: "
                f"import torch {figures['import_torch_s']:.2f} s, diagnose {figures['diagnose_s']:.2f} s, "
                f"peak {figures['peak_mb']:.0f} MB resident"
            )


if __name__ == "__main__":
    main()
