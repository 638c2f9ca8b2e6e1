"""The training loops, and what they share: checks, checkpoints, processes, logs."""
