"""Figures 3 to 6 of the paper, of any domain or of students on disk."""
