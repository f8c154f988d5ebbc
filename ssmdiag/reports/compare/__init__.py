"""Reports of checkpoints compared: runs, pairs of models, conversions."""
