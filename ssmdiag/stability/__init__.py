"""How far a decay moves when its weight does: by a gradient, and by rounding."""
