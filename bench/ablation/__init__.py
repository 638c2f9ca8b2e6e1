"""Sweeps over training settings that can decide: domains, cells, paired statistics, reports."""
