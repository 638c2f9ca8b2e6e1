"""TSD-SR: train and run the one-step super-resolution model of the paper (arXiv 2411.18263)."""

__version__ = "0.1.0"
