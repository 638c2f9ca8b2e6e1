"""Training data: degradation, pairs made on the fly, data sets prepared once."""
