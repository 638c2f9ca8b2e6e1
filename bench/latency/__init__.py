"""Seconds per image by stage, operations and memory, of methods that take turns in one process."""
