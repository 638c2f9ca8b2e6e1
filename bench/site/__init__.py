"""Runs as a page for any browser, without a network."""
