"""Training data: degraded on the fly, or prepared once."""
