"""Time of `ssmdiag check` over a run of 100 checkpoints of a 130M Mamba: python -m tests.benchmarks.check_130m [COUNT]

24 layers of 1,536 channels and 16 modes each; the installed command, start-up included and stated apart.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.sparse_mamba import MAMBA_130M, write_sparse_mamba


def main() -> None:
    """Print seconds for one checkpoint and for all."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as directory:
        paths = [
            write_sparse_mamba(Path(directory) / f"step-{1000 * k}.safetensors", MAMBA_130M, seed=k, trained=True)
            for k in range(1, count + 1)
        ]
        one, _ = _seconds(paths[:1])
        all_, last = _seconds(paths)
        print(
            f"{count} checkpoints of 24 × 1536 × 16: {all_:.1f} s, one alone {one:.1f} s, "
            f"{(all_ - one) / max(count - 1, 1):.2f} s for each more; {last}"
        )


def _seconds(paths: list[Path]) -> tuple[float, str]:
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "ssmdiag", "check", "--isolated", "--fail-on", "error", *map(str, paths)],
        check=False,
        capture_output=True,
        text=True,
    )
    if run.returncode == 2:
        raise RuntimeError(run.stderr)
    return time.perf_counter() - start, run.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
