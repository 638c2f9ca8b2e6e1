"""Records of a sweep become tables, plots and sentences."""
