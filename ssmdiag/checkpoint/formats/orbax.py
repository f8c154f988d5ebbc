"""Checkpoints of orbax and of TensorFlow, whose folders look alike. Recognised, but not read."""

from __future__ import annotations

from ssmdiag.checkpoint.formats.interface import Format, Refusal

FORMAT = Format(
    name="orbax",
    refusals=(
        Refusal(
            "an orbax or TensorFlow checkpoint, which holds shards of tensors",
            "restore it where it was written and numpy.savez('model.npz', **flat_params).",
            folder=r"_CHECKPOINT_METADATA|_METADATA|manifest\.ocdbt|checkpoint",
        ),
    ),
)
