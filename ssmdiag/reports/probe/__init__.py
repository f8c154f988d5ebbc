"""Reports of observed memory: text, JSON."""
