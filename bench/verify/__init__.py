"""Checks of this machine's metrics against published scores."""
