"""Official repositories, each run in an environment of its own."""
