"""Official repositories, each in its own environment."""
