"""Time and memory of diagnosing a checkpoint of 5.5 GB: python -m tests.benchmarks.inspect_2_8b [PATH]

The file has the tensors of Mamba-2.8B (64 layers, 5120 channels, 16 modes). It is sparse: what the diagnosis
reads holds values, the rest is a hole, which costs no disk and is never read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.sparse_mamba import write_sparse_mamba

_DIAGNOSE = r"""
import json, pathlib, re, resource, sys, time
start = time.perf_counter()
import torch
imported = time.perf_counter()
from ssmdiag import diagnose
result = diagnose(sys.argv[1], device=sys.argv[2])
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


def measure(path: Path, device: str) -> dict[str, float]:
    """Return seconds, bytes read and peak resident memory of a diagnosis in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-c", _DIAGNOSE, str(path), device], check=True, capture_output=True, text=True, timeout=300
    )
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def main() -> None:
    """Print the figures of a given file, or of one made for the purpose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", metavar="PATH", type=Path, nargs="?")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = asked.path or write_sparse_mamba(Path(directory) / "model.safetensors")
        for _ in range(3):
            figures = measure(path, asked.device)
            print(
                f"{figures['size'] / 1e9:.2f} GB, reads {figures['bytes_read'] / 1e6:.1f} MB: "
                f"import torch {figures['import_torch_s']:.2f} s, diagnose {figures['diagnose_s']:.2f} s, "
                f"peak {figures['peak_mb']:.0f} MB resident"
            )


if __name__ == "__main__":
    main()
