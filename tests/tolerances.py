"""Relative tolerances by the dtype in which the reference was computed."""

RELATIVE = {"float64": 1e-12, "complex128": 1e-12, "float32": 2e-6, "complex64": 2e-6, "bfloat16": 1e-2}
"""Log-eigenvalues agree with a float64 reference to 1e-12, with a model's own float32 code to 2e-6."""
EIGENVALUES = 1e-6
"""What the project promises against any independent computation."""
