"""Seconds by stage, operations and memory."""
