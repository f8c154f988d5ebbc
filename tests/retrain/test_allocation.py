"""Freed memory is kept: steps fault no new pages in."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import sys
import torch
from ssmdiag.retrain.allocation import keep_freed_memory
torch.set_num_threads(1)
kept = sys.argv[1] == "keep" and keep_freed_memory()
def step():
    some = [torch.ones(1 << 20) for _ in range(8)]
    return sum(some)
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(what: str) -> tuple[str, int]:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, what], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    kept, count = run.stdout.split()
    return kept, int(count)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives memory back")
def test_steps_fault_no_pages_in_once_memory_is_kept() -> None:
    (_, usual), *tries = faults("usual"), *(faults("keep") for _ in range(3))
    assert {kept for kept, _ in tries} == {"True"}
    few = min(count for _, count in tries)  # now and then the heap grows once more
    assert few < 200
    assert usual > 10 * few
