"""Students of a large base, scored on real test sets."""
