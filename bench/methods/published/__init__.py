"""Finished images as a method: those that authors published, or any folder."""
