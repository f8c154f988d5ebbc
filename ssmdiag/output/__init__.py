"""Where output goes: never over what was read, and whole or not at all."""
