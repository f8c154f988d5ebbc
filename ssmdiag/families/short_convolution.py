"""Short convolutions as layers of their own: LFM2 and LFM3 (Liquid AI, 2025, arXiv 2511.23404), Inkling, Evo 2.

| symbol | LFM2, LFM3 | Inkling | Evo 2 | shape | role |
|---|---|---|---|---|---|
| w | `conv.weight` | `conv1d.weight` | `h` | channel, 1, tap | K_t = w[K − 1 − t] |

A causal convolution of K taps per channel: the last weight meets the present input, and nothing older than K − 1 steps
reaches the output. Gates before and after it do not change that. The short convolutions inside Mamba's and other
layers belong to those. In Evo 2 groups of channels share a filter, and filters of 128 taps and more lie the other way
round, K_t = w[t] (Zymrael/vortex cb229ae, vortex/model/engine.py:174 and 197). What a layer adds of the present input
(Inkling's residual, Evo 2's `D`) is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssmdiag.families.interface import Family, Layer, Recurrence, Spelling

FORWARD_FROM = 128
"""Taps from which Evo 2 multiplies by the filter's spectrum, so that its first tap meets the present input."""


def read(layer: Layer) -> Iterator[Recurrence]:
    taps = layer[layer.spelling.telltale]
    taps = taps.reshape(taps.shape[0], -1)
    if not (layer.spelling.telltale == "h" and taps.shape[1] >= FORWARD_FROM):
        taps = taps.flip(1)
    yield layer.convolution(taps[None])


_PROJECTIONS = {"in_proj.weight": "3*channel _", "out_proj.weight": "_ channel"}
_CONV = r"(?:^|\.)conv$"
"""The name that its block gives the layer; any other module may hold a `conv` too."""
_INKLING = r"k_sconv|v_sconv|attn_sconv|mlp_sconv|k_proj\.sconv|v_proj\.sconv"
"""The names of Inkling's; a convolution that a block calls `sconv` may have a bias, and look ahead."""

FAMILY = Family(
    name="short_convolution",
    title="Short convolution",
    paper="arXiv 2511.23404",
    memory="exact",
    spellings=(
        Spelling("transformers, LFM2 and LFM3", {"conv.weight": "channel 1 tap", **_PROJECTIONS}, path=_CONV),
        Spelling("mlx-lm, LFM2", {"conv.weight": "channel tap 1", **_PROJECTIONS}, path=_CONV),
        Spelling("llama.cpp, LFM2", {"conv.weight": "channel tap", **_PROJECTIONS}, path=r"(?:^|\.)shortconv$"),
        Spelling(
            "transformers, Inkling",
            {"conv1d.weight": "channel 1 tap"},
            absent=("conv1d.bias",),
            path=rf"(?:^|\.)(?:{_INKLING}|post_attention_convolution|post_mlp_convolution)$",
        ),
        Spelling("Inkling, as saved", {"weight": "channel 1 tap"}, absent=("bias",), path=rf"(?:^|\.)(?:{_INKLING})$"),
        Spelling("vortex, Evo 2", {"h": "filter 1 tap", "short_filter_weight": "_ 1 _"}),
    ),
    model_types=(
        "inkling2",
        "inkling2_loop",
        "inkling2_loop_text",
        "inkling2_text",
        "inkling_mm_model",
        "inkling_text",
        "lfm3",
        "lfm3_vl",
    ),
    gguf=("lfm2",),
    read=read,
)
