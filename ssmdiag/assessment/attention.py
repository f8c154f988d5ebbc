"""Attention beside the layers that are diagnosed: found by name, and only counted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssmdiag.assessment.evidence import CheckpointEvidence

ATTENTION = re.compile(
    r"(?:^|\.)(?:q_proj|query|query_key_value|qkv|qkv_proj|Wqkv|c_attn|in_proj_weight|q_a_proj|wq)(?:\.weight)?$"
)
"""Query projections; outside a recurrent layer they mean attention."""
ANOTHER = re.compile(r"vision|visual|image|audio")
"""Paths of the parts of a model that read no text."""


def count_attention(evidence: CheckpointEvidence) -> int:
    """Return the number of modules with a query projection, outside the recognised layers and beside no other input."""
    own = {name for names in evidence.names_by_layer.values() for name in names}
    outside = (name for name in evidence.checkpoint if name not in own and not ANOTHER.search(name))
    return len({match.string[: match.start()] for name in outside if (match := ATTENTION.search(name))})
