"""The optimiser state saved with a checkpoint: found, read and tied to the checkpoint's names."""
