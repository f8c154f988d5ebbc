"""Checkpoints held against each other: a run in order, two models, a conversion."""
