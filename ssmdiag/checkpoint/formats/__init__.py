"""One module per container, and what those have in common."""
