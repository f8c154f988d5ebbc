"""Tiny random models of transformers, saved as their users save them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

_SIZES = {"vocab_size": 64, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_ATTENTION = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
_HYBRID = {**_ATTENTION, "intermediate_size": 48}
_SSD = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8, "mamba_chunk_size": 8}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}
_LOCAL_EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
_GDN = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
_QWEN = {**_ATTENTION, **_GDN, "num_hidden_layers": 4, "head_dim": 8}
_QWEN_EXPERTS = {**_EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
_MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8, "qk_nope_head_dim": 4, "moe_intermediate_size": 16}
_KDA = {"linear_head_dim": 8, "linear_num_heads": 4}

TINY: dict[str, dict[str, Any]] = {
    "mamba": {**_SIZES, "state_size": 4, "num_hidden_layers": 2},
    "falcon_mamba": {**_SIZES, "state_size": 4, "num_hidden_layers": 2},
    "jamba": {
        **_HYBRID, **_EXPERTS, "num_hidden_layers": 3, "attn_layer_period": 3, "attn_layer_offset": 1,
        "mamba_d_state": 4, "use_mamba_kernels": False,
    },
    "zamba": {
        **_HYBRID, "num_key_value_heads": 4, "num_hidden_layers": 4, "mamba_d_state": 4, "n_mamba_heads": 2,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "use_mamba_kernels": False,
    },
    "mamba2": {
        **_SIZES, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2,
        "chunk_size": 8,
    },
    "zamba2": {
        **_HYBRID, "num_key_value_heads": 4, "num_hidden_layers": 4, "mamba_d_state": 8, "n_mamba_heads": 8,
        "mamba_ngroups": 2, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "use_mamba_kernels": False, "chunk_size": 8,
    },
    "bamba": {**_HYBRID, **_SSD, "num_hidden_layers": 3, "attn_layer_indices": [1]},
    "nemotron_h": {
        **_HYBRID, "layers_block_type": ["mamba", "attention", "mlp"], "head_dim": 8, "ssm_state_size": 8,
        "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 8, "use_mamba_kernels": False,
    },
    "granitemoehybrid": {**_HYBRID, **_SSD, **_LOCAL_EXPERTS, "layer_types": ["mamba", "attention"],
                         "num_hidden_layers": 2},
    "falcon_h1": {**_HYBRID, **_SSD, "num_hidden_layers": 2, "mamba_d_ssm": 64},
    "qwen3_next": {**_QWEN, **_QWEN_EXPERTS, "intermediate_size": 48},
    "qwen3_5_text": {**_QWEN, "intermediate_size": 48},
    "qwen3_5_moe_text": {**_QWEN, **_QWEN_EXPERTS},
    "lara_mini": {
        **_QWEN, **_QWEN_EXPERTS, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    },
    "kimi_linear": {
        **_HYBRID, **_MLA, **_KDA, **_LOCAL_EXPERTS, "num_key_value_heads": 4, "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "mlp_layer_types": ["dense"] * 4,
    },
    "bailing_hybrid": {
        **_HYBRID, **_MLA, **_LOCAL_EXPERTS, "num_key_value_heads": 4, "num_hidden_layers": 6, "head_dim": 8,
        "layer_group_size": 3, "n_group": 1, "topk_group": 1, "num_mtp_layers": 0,
    },
    "minimax": {
        **_HYBRID, **_LOCAL_EXPERTS, "num_hidden_layers": 2, "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "olmo_hybrid": {**_HYBRID, **_GDN, "linear_num_key_heads": 4, "num_hidden_layers": 4},
    "recurrent_gemma": {
        **_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48,
        "num_hidden_layers": 3, "lru_width": 32,
    },
    "rwkv": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64},
    "xlstm": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "mode": "inference"},
}  # fmt: skip
"""Settings of the smallest model of each `model_type` that still has every kind of recurrent layer."""

_INDEXED = {
    **_SIZES, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128,
    "num_experts_per_tok": 1, "moe_intermediate_size": 16,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "qwen4_exp_text": {
        **_INDEXED, **_GDN, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 2,
        "shared_expert_intermediate_size": 16, "ple_layer_ids": [], "ple_embed_dim": 32, "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16, "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64, "split_ngram_parts": 2, "heads_per_ngram": 2, "hc_lowrank": 8,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    "glm5_next_text": {
        **_INDEXED, **_KDA, "num_key_value_heads": 4, "intermediate_size": 48, "kv_lora_rank": 16, "q_lora_rank": 16,
        "qk_rope_head_dim": 0, "v_head_dim": 8, "qk_nope_head_dim": 8, "n_routed_experts": 2, "index_head_dim": 8,
        "index_n_heads": 2,
    },
}  # fmt: skip
"""The same, of types that few tests need."""

MORE["jev"] = {"hidden_size": 32, "text_config": {**TINY["qwen3_5_text"], "model_type": "qwen3_5_text"}}

_VISION = {
    "hidden_size": 32, "depth": 1, "num_hidden_layers": 1, "num_heads": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "out_hidden_size": 32, "deepstack_visual_indexes": [],
}  # fmt: skip
_WITH_VISION = {
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "qwen4_exp": "qwen4_exp_text",
    "glm5_next": "glm5_next_text", "minicpm_ocr": "qwen3_5_text", "minicpmv4_6": "qwen3_5_text",
    "minicpmv4_7": "qwen3_5_text", "nemotron_h_omni": "nemotron_h",
}  # fmt: skip
"""model_type of a model that sees → that of the model inside it."""
for _type, _text in _WITH_VISION.items():
    MORE[_type] = {
        "text_config": {**{**TINY, **MORE}[_text], "model_type": _text},
        "vision_config": {**_VISION, **({"video_temporal_patch_size": 2} if _type == "nemotron_h_omni" else {})},
    }


@cache
def _quiet() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def tiny_model(model_type: str, *, seed: int = 0, **overrides: Any) -> Any:
    """Return a tiny random float64 model in eval mode; every parameter is moved off its initial value."""
    transformers = _quiet()
    settings = {**{**MORE, **TINY}.get(model_type, {}), **overrides}
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **settings)
    names = "ForCausalLM", "", "ForImageTextToText", "ForDecision"
    kinds = [getattr(transformers, f"AutoModel{name}") for name in names]
    model = next(kind for kind in kinds if type(config) in kind._model_mapping).from_config(config)
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def save_tiny(model_type: str, tmp_path: Path, **overrides: Any) -> tuple[Any, Path]:
    """Return (model, directory): a tiny random float64 model and where `save_pretrained` put it."""
    model = tiny_model(model_type, **overrides)
    directory = tmp_path / model_type
    model.save_pretrained(directory)
    return model, directory
