"""The evidence: methods × test sets × metrics → tables, every number backed by a per-image record."""

__version__ = "0.1.0"
