"""The paper's equations and the two turns of a training step."""
