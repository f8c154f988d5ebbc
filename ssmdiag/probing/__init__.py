"""Observed memory: what a live model retains of real input, and how far back its answers use it."""
