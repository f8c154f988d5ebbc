"""Megatron-LM's projections in parts: each part is stored, or split between tensor-parallel ranks, by itself.

megatron/core/ssm/mamba_mixer.py and gated_delta_net/gdn.py of NVIDIA/Megatron-LM (d98e8a64): `sharded_state_dict`
names the parts of `in_proj.weight` and `conv1d`, in the order in which they lie in the projection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

PARTS = (
    ("z", "x", "B", "C", "dt"),
    ("x", "B", "C"),
    ("query", "key", "value", "z", "beta", "alpha"),
    ("query", "key", "value"),
)
"""Of Mamba-2's in_proj and conv1d, of Gated DeltaNet's in_proj and conv1d."""
_KNOWN = {frozenset(parts): parts for parts in PARTS}
_LETTERS = frozenset().union(*PARTS)


def parts_by_projection(names: Iterable[str]) -> dict[str, list[str]]:
    """Return projection → the names of its parts in order, for every projection of which all parts are there.

    >>> parts_by_projection(["a.conv1d.bias.B", "a.conv1d.bias.x", "a.conv1d.bias.C", "a.D"])
    {'a.conv1d.bias': ['a.conv1d.bias.x', 'a.conv1d.bias.B', 'a.conv1d.bias.C']}
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name in names:
        stem, _, part = name.rpartition(".")
        if part in _LETTERS and stem.endswith(("in_proj.weight", "in_proj.bias", "conv1d.weight", "conv1d.bias")):
            found[stem].add(part)
    known = {stem: _KNOWN.get(frozenset(parts)) for stem, parts in found.items()}
    return {stem: [f"{stem}.{part}" for part in parts] for stem, parts in known.items() if parts}
