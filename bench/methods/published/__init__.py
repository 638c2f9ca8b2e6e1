"""Finished images as a method: published ones, or any folder."""
