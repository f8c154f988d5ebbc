"""Checkpoints of DeepSpeed's ZeRO, with one file per rank. Recognised, but not read."""

from __future__ import annotations

from ssmdiag.checkpoint.formats.interface import Format, Refusal

FORMAT = Format(
    name="DeepSpeed",
    refusals=(
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
    ),
    owns_folder=r"zero_to_fp32\.py|bf16_zero_pp_rank_.*|zero_pp_rank_.*",
)
