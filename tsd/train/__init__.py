"""The training loops of both stages, with checks, checkpoints, processes and logs."""
