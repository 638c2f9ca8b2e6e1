"""The paper's equations and the two turns of one training step, without the loop."""
