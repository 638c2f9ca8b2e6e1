"""Rendered lettering, a prior that a small teacher can learn."""
