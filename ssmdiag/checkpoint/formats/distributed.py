"""Checkpoints with one file per rank: torch.distributed's and DeepSpeed's. Recognised, but not read."""

from __future__ import annotations

from ssmdiag.checkpoint.formats.interface import Format, Refusal

FORMAT = Format(
    name="distributed",
    refusals=(
        Refusal(
            "what one rank wrote of a torch.distributed checkpoint",
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} model.pt",
            name=r"\.distcp$",
            partial=True,
        ),
        Refusal(
            "one rank's part of what DeepSpeed's ZeRO split: optimiser and weights without names",
            "python zero_to_fp32.py DIR OUT, with the folder that holds the file `latest`, and inspect the result.",
            name=r"zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt$",
            partial=True,
        ),
        Refusal(
            "a DeepSpeed checkpoint, which holds shards of tensors",
            "run its zero_to_fp32.py and inspect the result.",
            folder=r"zero_to_fp32\.py|global_step\d+|.*mp_rank_\d+_model_states\.pt|latest",
        ),
        Refusal(
            "a torch.distributed checkpoint, which holds shards of tensors",
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR model.pt",
            folder=r"\.metadata|__\d+_\d+\.distcp",
        ),
    ),
    owns_folder=r"\.metadata|__\d+_\d+\.distcp|zero_to_fp32\.py|bf16_zero_pp_rank_.*|zero_pp_rank_.*",
)
