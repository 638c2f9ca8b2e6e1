"""Runs as data sets on the hub: sent, and read."""
