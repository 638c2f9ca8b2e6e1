"""The memory that a training run will need, counted without weights."""
