"""Which modules of a checkpoint are attention layers, by their names: they remember too, and are not judged."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

QUERY = re.compile(
    r"(?:^|\.)(?:q_proj|query|query_key_value|qkv|qkv_proj|Wqkv|c_attn|in_proj_weight|q_a_proj|wq|linear_qkv|"
    r"linear_q_proj|linear_q_down_proj|attn_q|attn_q_a)(?:\.(?:weight|qweight|weight_packed))?$"
)
"""Query projections; outside a recurrent layer they mean attention."""
NOT_OVER_TOKENS = re.compile(r"(?:^|[._])(?:visual|vision|vit|clip|image|audio|speech|mtp|nextn)(?:[._]|$)")
"""Parts of a model whose attention is not one of its layers over the context: other senses, draft heads."""
LINEAR_IN_GGUF = ("ssm_conv1d_q.weight", "ssm_f_a.weight")
"""Tensors of a GGUF block whose `attn_q` is that of a linear attention."""


def attention_layers(names: Collection[str], own: Iterable[str]) -> tuple[str, ...]:
    """Return the paths of the attention layers among a checkpoint's tensors; `own` are those of recurrent layers.

    >>> attention_layers(["layers.0.mamba.A_log", "layers.1.self_attn.q_proj.weight"], ["layers.0.mamba.A_log"])
    ('layers.1.self_attn',)
    """
    present = {name: None for name in names if QUERY.search(name) and not NOT_OVER_TOKENS.search(name)}
    if not present:
        return ()
    inside = {name for name in own if not _beside_recurrence_in_gguf(name, names)}
    paths = (name[: match.start()] for name in present if name not in inside and (match := QUERY.search(name)))
    return tuple(dict.fromkeys(paths))


def _beside_recurrence_in_gguf(name: str, names: Collection[str]) -> bool:
    """Whether a query projection is that of attention beside a recurrence: GGUF has no modules within a block."""
    block, _, leaf = name.removesuffix(".weight").rpartition(".")
    return leaf in ("attn_q", "attn_q_a") and not any(f"{block}.{local}" in names for local in LINEAR_IN_GGUF)
