"""What a spectrum can rebuild of its input: memory function, length, capacity, and how rounding shortens them."""
