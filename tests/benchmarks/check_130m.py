"""Time of `ssmdiag check` over a run of 100 checkpoints of a 130M Mamba: python -m tests.benchmarks.check_130m [COUNT]

24 layers of 1,536 channels and 16 modes each; the installed command, start-up included and stated apart.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.sparse_mamba import MAMBA_130M, write_sparse_mamba


def main() -> None:
    """Print seconds for one checkpoint and for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", metavar="COUNT", type=int, nargs="?", default=100)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    count, device = asked.count, asked.device
    with tempfile.TemporaryDirectory() as directory:
        paths = [
            write_sparse_mamba(Path(directory) / f"step-{1000 * k}.safetensors", MAMBA_130M, seed=k, trained=True)
            for k in range(1, count + 1)
        ]
        one, _ = _seconds(paths[:1], device)
        all_, last = _seconds(paths, device)
        print(
            f"{count} checkpoints of 24 × 1536 × 16: {all_:.1f} s, one alone {one:.1f} s, "
            f"{(all_ - one) / max(count - 1, 1):.2f} s for each more; {last}"
        )


def _seconds(paths: list[Path], device: str) -> tuple[float, str]:
    start = time.perf_counter()
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "ssmdiag",
            "check",
            "--isolated",
            "--fail-on",
            "error",
            "--device",
            device,
            *map(str, paths),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    if run.returncode == 2:
        raise RuntimeError(run.stderr)
    return time.perf_counter() - start, run.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
