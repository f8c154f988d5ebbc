"""Bytes, requests and time of diagnosing 5.5 GB over HTTP: python -m tests.benchmarks.remote_2_8b [--latency SECONDS]

The file has the tensors of Mamba-2.8B, the server is a stand-in for the hub on this machine that waits before each
answer. Beside it, in a process of its own too, the same file is read from the disk: their reports must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.sparse_mamba import write_sparse_mamba
from tests.checkpoint.sources.stand_in import serve

_DIAGNOSE = r"""
import json, sys, time
import torch
torch.set_num_threads(1)
start, busy = time.perf_counter(), time.process_time()
from ssmdiag import diagnose
from ssmdiag.reports.json import document
result = diagnose(sys.argv[1])
seconds, busy = time.perf_counter() - start, time.process_time() - busy
print(json.dumps({"seconds": seconds, "cpu_seconds": busy, "document": document(result)}))
"""
_OF_ONE_PLACE = ("checkpoint", "source", "seconds")


def measure(path: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return the time that a diagnosis takes after torch is imported, and its report."""
    command = [sys.executable, "-c", _DIAGNOSE, path]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    figures: dict[str, Any] = json.loads(ended.stdout)
    return figures


def _numbers(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in _OF_ONE_PLACE}


def main() -> None:
    """Print the figures of a file made for the purpose, three times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.05, help="Seconds before each answer.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        repo = Path(directory) / "org" / "moved"
        repo.mkdir(parents=True)
        path = write_sparse_mamba(repo / "model.safetensors")
        with serve(Path(directory), latency=asked.latency) as world:
            environment = {**os.environ, "HF_ENDPOINT": world.url, "HF_HOME": str(Path(directory) / "hub")}
            environment |= {"no_proxy": "127.0.0.1,localhost"}
            for _ in range(3):
                here, there = measure(str(path), environment), measure("hf://org/moved", environment)
                moved = there["document"]["source"]
                one, other = (_numbers(each["document"]) for each in (here, there))
                print(
                    f"{path.stat().st_size / 1e9:.2f} GB, {moved['bytes'] / 1e6:.1f} MB moved in {moved['requests']} "
                    f"requests: {there['seconds']:.2f} s ({there['cpu_seconds']:.2f} s busy); from the disk "
                    f"{here['seconds']:.2f} s ({here['cpu_seconds']:.2f} s busy), a ratio of "
                    f"{there['seconds'] / here['seconds']:.2f}; "
                    f"reports {'equal' if one == other else 'DIFFER'}"
                )


if __name__ == "__main__":
    main()
