"""Sweeps over training settings: cells, paired statistics, domains."""
