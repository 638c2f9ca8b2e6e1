"""Runs as a page for any browser, without a server or a network."""
