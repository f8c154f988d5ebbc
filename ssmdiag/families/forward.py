"""Settings of the forward pass, shared by families (`Family.forward`), that change a memory beside the weights."""

from __future__ import annotations

import math

from ssmdiag.families.interface import ForwardSetting

ACTIVATION = ForwardSetting(
    ("mamba_hidden_act", "hidden_mamba_act", "hidden_act"),
    usual="silu",
    meaning="the activation of the layer's input",
)
BIDIRECTIONAL = ForwardSetting(("bidirectional",), usual=False, meaning="whether the layer reads both ways")
GROUPS = ForwardSetting(
    ("n_groups", "mamba_n_groups", "mamba_ngroups", "ngroups", "ssm.group_count"),
    usual=None,
    meaning="how many groups of heads have a B and C of their own",
)
KEY_HEADS = ForwardSetting(
    ("linear_num_key_heads", "ssm.group_count"), usual=None, meaning="how many heads share the rows of query and key"
)
NEGATIVE_EIGENVALUES = ForwardSetting(
    ("linear_allow_neg_eigval", "allow_neg_eigval"),
    usual=False,
    meaning="whether the write strength is doubled",
    implied={"olmo_hybrid": True},
)
NORMS_WITHOUT_WEIGHTS = ForwardSetting(
    ("dt_b_c_rms",),
    usual=False,
    meaning="whether Δ, B and C are normalised, without weights",
    implied={"falcon_mamba": True},
)
STEP_LIMIT = ForwardSetting(
    ("time_step_limit", "dt_limit"), usual=(0.0, math.inf), meaning="Δ is kept within it while a prompt is read"
)
LEAST_STEP = ForwardSetting(
    ("time_step_min",), usual=0.001, meaning="Δ is kept above it while a prompt is read", only=("zamba2", "nemotron_h")
)
