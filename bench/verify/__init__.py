"""Published scores of published images, and the check that this machine computes the same."""
