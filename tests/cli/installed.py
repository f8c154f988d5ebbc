"""The installed command, run in a process of its own."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMAND = str(Path(sysconfig.get_path("scripts")) / "ssmdiag")


def environment() -> dict[str, str]:
    """Return the variables it runs with: one thread, and the models of the tests importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
