"""What steers each selective family, spelling by spelling: names and shapes for sizes of 4."""

from __future__ import annotations

_QKV = {"q_proj.weight": (8, 4), "k_proj.weight": (8, 4), "v_proj.weight": (16, 4)}
_CONVOLUTIONS = {"q_conv1d.weight": (8, 1, 4), "k_conv1d.weight": (8, 1, 4), "v_conv1d.weight": (16, 1, 4)}
_MAMBA = {"dt_proj.weight": (4, 2), "x_proj.weight": (10, 4), "conv1d.weight": (4, 1, 4), "conv1d.bias": (4,)}
_BACKWARD = {
    "dt_proj_b.weight": (4, 2),
    "x_proj_b.weight": (10, 4),
    "conv1d_b.weight": (4, 1, 4),
    "conv1d_b.bias": (4,),
}
_IN_PROJ = {"in_proj.weight": (8, 4)}
_KDA = {**_QKV, **_CONVOLUTIONS, "b_proj.weight": (4, 4)}
_RWKV = {"key.weight": (16, 4), "value.weight": (16, 4), "receptance.weight": (16, 4)}
_FLA_RWKV = {"k_proj.weight": (16, 4), "v_proj.weight": (16, 4), "r_proj.weight": (16, 4)}


def _torch(gates: int, end: str) -> dict[str, tuple[int, ...]]:
    rows = 4 * gates
    shapes = {"weight_ih": (rows, 4), "weight_hh": (rows, 4), "bias_ih": (rows,), "bias_hh": (rows,)}
    return {f"{name}{end}": shape for name, shape in shapes.items()}


STEERED: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {
    "mamba": {
        "state-spaces": {**_MAMBA, **_IN_PROJ, "in_proj.bias": (8,), "dt_layernorm.weight": (2,)},
        "hustvl/Vim, bimamba v2": {**_MAMBA, **_BACKWARD, **_IN_PROJ},
        "hustvl/Vim, bimamba v1": {**_MAMBA, **_IN_PROJ},
        "mambapy": {**_MAMBA, **_BACKWARD, **_IN_PROJ},
        "NVlabs": {"dt_proj.0.weight": (4, 2), "x_proj.0.weight": (10, 4), "conv1d.weight": (4, 1, 4), **_IN_PROJ},
        "VMamba": {
            "dt_projs_weight": (4, 4, 2),
            "x_proj_weight": (4, 10, 4),
            "conv2d.weight": (4, 1, 3, 3),
            **_IN_PROJ,
        },
        "llama.cpp": {
            "ssm_dt.weight": (4, 2),
            "ssm_x.weight": (10, 4),
            "ssm_conv1d.weight": (4, 4),
            "ssm_in.weight": (8, 4),
        },
        "Flax": {
            "Dense_2.kernel": (2, 4),
            "Dense_1.kernel": (4, 10),
            "Conv_0.kernel": (4, 1, 4),
            "Dense_0.kernel": (4, 8),
        },
    },
    "zamba": {
        "": {
            "dt_proj_weight": (4, 4, 2),
            "x_proj_weight": (4, 10, 4),
            "conv1d.weight": (16, 1, 4),
            "in_proj.weight": (32, 4),
        }
    },
    "plamo2": {
        "": {
            "dt_proj.weight": (4, 4),
            "bcdt_proj.weight": (12, 4),
            "conv1d.weight": (16, 1, 4),
            **_IN_PROJ,
            "B_norm_weight": (4,),
            "C_norm_weight": (4,),
        }
    },
    "mamba2": {
        "state-spaces": {
            "in_proj.weight": (20, 4),
            "in_proj.bias": (20,),
            "conv1d.weight": (12, 1, 4),
            "conv1d.bias": (12,),
        },
        "llama.cpp": {
            "ssm_in.weight": (20, 4),
            "ssm_in.bias": (20,),
            "ssm_conv1d.weight": (12, 4),
            "ssm_conv1d.bias": (12,),
        },
    },
    "mamba3": {
        "": {
            "in_proj.weight": (32, 4),
            "in_proj.bias": (32,),
            "C_norm.weight": (4,),
            "B_norm.weight": (4,),
            "mimo_x": (4, 4, 4),
        }
    },
    "gated_delta_net": {
        "Qwen3": {
            "in_proj_a.weight": (4, 4),
            "in_proj_b.weight": (4, 4),
            "in_proj_qkv.weight": (32, 4),
            "conv1d.weight": (32, 1, 4),
        },
        "OLMo": {"a_proj.weight": (4, 4), "b_proj.weight": (4, 4), **_QKV, **_CONVOLUTIONS, "decay": (4,), "D": (4,)},
        "NVlabs": {"gk_proj.weight": (4, 4), "b_proj.weight": (4, 4), **_QKV, **_CONVOLUTIONS},
        "lara_mini": {"in_proj.weight": (56, 4), "conv1d.weight": (32, 1, 4)},
        "llama.cpp": {
            "ssm_alpha.weight": (4, 4),
            "ssm_beta.weight": (4, 4),
            "attn_qkv.weight": (32, 4),
            "ssm_conv1d.weight": (32, 4),
        },
    },
    "kda": {
        "Kimi-Linear, in memory": {
            **_KDA,
            "forget_gate.f_a_proj.weight": (4, 4),
            "forget_gate.f_b_proj.weight": (4, 4),
        },
        "GLM-5-next, Kimi-K3, in memory": {
            **_KDA,
            "forget_gate.f_a_proj.weight": (4, 4),
            "forget_gate.f_b_proj.weight": (4, 4),
        },
        "Ling, Ring (bailing), in memory": {**_KDA, "forget_gate.f_proj.weight": (4, 4)},
        "Ling": {**_KDA, "f_proj.weight": (4, 4)},
        "llama.cpp, Ling": {"ssm_f_a.weight": (4, 4), "ssm_beta.weight": (4, 4), "attn_qkv.weight": (12, 4)},
        "llama.cpp": {
            "ssm_f_a.weight": (4, 4),
            "ssm_f_b.weight": (4, 4),
            "ssm_beta.weight": (4, 4),
            "attn_q.weight": (8, 4),
            "attn_k.weight": (8, 4),
            "attn_v.weight": (8, 4),
            "ssm_conv1d_q.weight": (1, 8, 1, 4),
            "ssm_conv1d_k.weight": (1, 8, 1, 4),
            "ssm_conv1d_v.weight": (1, 8, 1, 4),
        },
        "fla": {**_KDA, "f_proj.0.weight": (4, 4), "f_proj.1.weight": (4, 4)},
        "": {**_KDA, "f_a_proj.weight": (4, 4), "f_b_proj.weight": (4, 4)},
    },
    "mesa_net": {
        "fla": {
            "a_proj.weight": (4, 4),
            "b_proj.weight": (4, 4),
            "b_proj.bias": (4,),
            "lambda_params": (16,),
            **_QKV,
            **_CONVOLUTIONS,
            "q_conv1d.bias": (8,),
        }
    },
    "raven": {
        "fla, gate": {"f_proj.weight": (4, 4), "r_proj.weight": (4, 4), **_QKV, "q_norm.weight": (4,)},
        "fla, router": {
            "a_proj.weight": (4, 4),
            "r_proj.0.weight": (4, 4),
            "r_proj.0.bias": (4,),
            "r_proj.2.weight": (8, 4),
            **_QKV,
        },
        "fla": {"a_proj.weight": (4, 4), "r_proj.weight": (8, 4), "r_bias": (4, 2), **_QKV, "k_norm.weight": (4,)},
    },
    "s7": {"lrnnx": {"x_proj.weight": (44, 4), "in_proj.weight": (4, 4)}},
    "rodimus": {
        "fla": {
            "g_gate_proj.weight": (4, 4),
            "tau_gate_proj.weight": (4, 4),
            "tau_gate_proj.bias": (4,),
            "up_proj.weight": (4, 4),
            "short_conv.weight": (4, 1, 4),
            "short_conv.bias": (4,),
            "q_proj.weight": (4, 4),
            "k_proj.weight": (4, 4),
            "i_gate_proj.0.weight": (2, 4),
            "i_gate_proj.1.weight": (4, 2),
            "i_gate_proj.1.bias": (4,),
        }
    },
    "rg_lru": {
        "lrnnx": {
            "recurrent_gate_proj.weight": (4, 4),
            "input_gate_proj.weight": (4, 4),
            "input_gate_proj.bias": (4,),
            "in_proj.weight": (4, 4),
            "conv1d.weight": (4, 1, 4),
            "conv1d.bias": (4,),
        },
        "transformers": {
            "recurrent_gate_weight": (4, 4, 4),
            "input_gate_weight": (4, 4, 4),
            "input_gate_bias": (4, 4),
            "^.linear_x.weight": (16, 4),
            "^.linear_x.bias": (16,),
            "^.conv_1d.weight": (16, 1, 4),
            "^.conv_1d.bias": (16,),
        },
        "google": {
            "a_gate.w": (4, 4, 4),
            "input_gate.w": (4, 4, 4),
            "input_gate.b": (4, 4),
            "^.linear_x.weight": (16, 4),
            "^.conv_1d.w": (4, 16),
            "^.conv_1d.b": (16,),
        },
    },
    "mlstm": {
        "xLSTM-large, transformers": {
            "fgate_preact.weight": (4, 4),
            "igate_preact.weight": (4, 4),
            "igate_preact.bias": (4,),
            "q.weight": (2, 4),
            "k.weight": (2, 4),
            "v.weight": (4, 4),
        },
        "xLSTM-large, fused": {
            "ifgate_preact.weight": (8, 4),
            "ifgate_preact.bias": (8,),
            "qkv_opreact.weight": (12, 4),
        },
        "NX-AI": {
            "mlstm_cell.fgate.weight": (4, 12),
            "mlstm_cell.igate.weight": (4, 12),
            "mlstm_cell.igate.bias": (4,),
            "q_proj.weight": (2, 4, 4),
            "k_proj.weight": (2, 4, 4),
            "v_proj.weight": (2, 4, 4),
            "conv1d.conv.weight": (8, 1, 4),
            "conv1d.conv.bias": (8,),
            "proj_up.weight": (16, 4),
        },
    },
    "gla": {
        "fla, GLA": {"gk_proj.0.weight": (2, 4), "gk_proj.1.weight": (4, 2), **_QKV},
        "fla, simple GLA": {"gk_proj.weight": (4, 4), **_QKV, **_CONVOLUTIONS},
        "fla, gated": {"f_proj.weight": (4, 4), **_QKV},
    },
    "hgrn": {
        "fla, HGRN2": {"f_proj.weight": (4, 4), "i_proj.weight": (4, 4), "q_proj.weight": (4, 4)},
        "fla, HGRN": {"f_proj.weight": (4, 4), "i_proj.weight": (4, 4), "i_conv1d.weight": (4, 1, 4)},
    },
    "rwkv6": {
        "BlinkDL": {
            "time_decay_w1": (4, 2),
            "time_decay_w2": (2, 16),
            **_RWKV,
            "time_maa_w": (1, 1, 4),
            "time_maa_w1": (4, 10),
        },
        "the rwkv package": {
            "time_decay_w1": (4, 2),
            "time_decay_w2": (2, 16),
            **_RWKV,
            "time_maa_w": (4,),
            "time_maa_w1": (4, 10),
        },
        "fla": {
            "w_proj.linear.lora.0.weight": (2, 4),
            "w_proj.linear.lora.2.weight": (16, 2),
            "k_proj.linear.weight": (16, 4),
            "v_proj.linear.weight": (16, 4),
            "x_bias": (5, 4),
            "x_proj.0.mu": (4,),
        },
        "llama.cpp": {
            "time_mix_decay_w1.weight": (2, 4),
            "time_mix_decay_w2.weight": (16, 2),
            "time_mix_key.weight": (16, 4),
            "time_mix_value.weight": (16, 4),
            "time_mix_receptance.weight": (16, 4),
            "time_mix_lerp_fused.weight": (5, 1, 1, 4),
            "time_mix_lerp_x.weight": (4,),
            "time_mix_w1.weight": (10, 4),
            "time_mix_w2.weight": (5, 4, 2),
        },
    },
    "rwkv7": {
        "BlinkDL": {
            "w1": (4, 2),
            "w2": (2, 16),
            "a0": (1, 1, 16),
            "a1": (4, 2),
            "a2": (2, 16),
            **_RWKV,
            "k_k": (1, 1, 16),
            "k_a": (1, 1, 16),
            "x_w": (1, 1, 4),
        },
        "llama.cpp": {
            "time_mix_w1.weight": (2, 4),
            "time_mix_w2.weight": (4, 2),
            "time_mix_a0.weight": (4,),
            "time_mix_a1.weight": (2, 4),
            "time_mix_a2.weight": (4, 2),
            "time_mix_key.weight": (4, 4),
            "time_mix_value.weight": (4, 4),
            "time_mix_receptance.weight": (4, 4),
            "time_mix_k_k.weight": (4,),
            "time_mix_k_a.weight": (4,),
            "time_mix_lerp_fused.weight": (5, 1, 1, 4),
        },
        "fla": {
            "w_lora.lora.0.weight": (2, 4),
            "w_lora.lora.2.weight": (16, 2),
            "a_lora.lora.0.weight": (2, 4),
            "a_lora.lora.2.weight": (16, 2),
            "a_lora.lora.2.bias": (16,),
            **_FLA_RWKV,
            "k_k": (16,),
            "k_a": (16,),
            "x_w": (1, 1, 4),
        },
    },
    "lstm": {
        "torch.nn.LSTMCell": _torch(4, ""),
        "torch.nn.LSTM, with a projection": {**_torch(4, "_l0"), "weight_hr_l0": (4, 4)},
        "torch.nn.LSTM": {
            **_torch(4, "_l0"),
            **_torch(4, "_l0_reverse"),
            **_torch(4, "_l1"),
            **_torch(4, "_l1_reverse"),
        },
    },
    "gru": {"torch.nn.GRUCell": _torch(3, ""), "torch.nn.GRU": _torch(3, "_l0")},
    "rnn": {"torch.nn.RNNCell": _torch(1, ""), "torch.nn.RNN": _torch(1, "_l0")},
    "min_gru": {"minGRU": {"to_hidden_and_gate.weight": (8, 4)}, "minLSTM": {"to_hidden_and_f_i_gate.weight": (12, 4)}},
}
"""What steers each selective family by its paper and its published code, by the start of a spelling's name."""
