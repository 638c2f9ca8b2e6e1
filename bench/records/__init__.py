"""The only reader and writer of per-image records."""
