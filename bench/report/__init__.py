"""Records become tables, pictures and comparisons, without torch."""
