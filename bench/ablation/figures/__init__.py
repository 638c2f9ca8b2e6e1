"""Figures 3 to 6, of any domain or of students on disk."""
