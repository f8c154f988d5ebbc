"""Output files: complete or absent, and never over a file that was read."""
