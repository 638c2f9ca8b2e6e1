"""The paper's tables as data: their rows, and the figures it printed."""
