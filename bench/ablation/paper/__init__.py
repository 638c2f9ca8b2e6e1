"""The domain `paper`: students of a large base such as SD3-medium, scored on real test sets."""
