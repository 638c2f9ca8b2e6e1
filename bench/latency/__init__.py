"""Seconds by stage, operations and memory of methods that take turns."""
