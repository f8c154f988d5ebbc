"""The law a kernel decays by: exponential, polynomial, truncated or flat, or undetermined."""
