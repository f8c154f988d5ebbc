"""Every rule on a GPU: its own tests, which plant what it is to find, with all diagnoses moved there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import pretended

RULES = sorted((Path(__file__).parent.parent / "rules").glob("test_*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_a_rule_finds_what_is_planted(path: Path, cuda: str) -> None:
    options = ["-p", "tests.cuda.elsewhere", *["--pretend"] * pretended(), "--deselect", "tests/rules/test_contract.py"]
    # Plugins that others installed may refuse to run within a worker.
    command = [sys.executable, "-m", "pytest", str(path), *options, "-p", "no:cacheprovider", "-p", "no:benchmark"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parents[2], check=False)
    assert done.returncode in (0, 5), done.stdout[-4000:]  # 5: none of its tests is a fast one
