"""Training data: degradation and pairs."""
