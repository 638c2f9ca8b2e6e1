"""Downloads of test sets and weights, on request only."""
