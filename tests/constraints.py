"""Writes the versions of this environment as pip constraints: python -m tests.constraints FILE (`make renew`)."""

from __future__ import annotations

import sys
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# Every version of the test environment; `make renew` writes this file anew. The package itself keeps wide bounds.
"""


def versions() -> list[str]:
    """Return `name==version` of all that is installed but ssmdiag, without local parts such as `+cpu`."""
    found = {str(each.metadata["Name"]): each.version.partition("+")[0] for each in distributions()}
    return [f"{name}=={found[name]}" for name in sorted(found, key=str.lower) if name != "ssmdiag"]


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(HEADER + "\n".join(versions()) + "\n")
