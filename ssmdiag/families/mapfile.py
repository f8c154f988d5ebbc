"""`--map map.toml`: a family declared in a file, for models ssmdiag does not know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.checkpoint import Checkpoint


def starting_map(checkpoint: Checkpoint, candidates: Sequence[str]) -> str:
    return ""
