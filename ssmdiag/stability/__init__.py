"""How far a decay moves when its weight moves: by a gradient step, or by rounding."""
