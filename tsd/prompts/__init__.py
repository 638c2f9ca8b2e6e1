"""Texts become prompt embeddings, one text encoder at a time."""
