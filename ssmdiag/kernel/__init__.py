"""Memory kernels: values at any lag, energy, horizon; on any device."""
