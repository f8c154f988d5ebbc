"""The optimiser state saved with a checkpoint: found, read and matched to the checkpoint's names."""
