"""Settings and baselines of `ssmdiag check`."""
