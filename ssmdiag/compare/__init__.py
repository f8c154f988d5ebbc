"""Comparisons of checkpoints: a run in order, two models, a conversion."""
