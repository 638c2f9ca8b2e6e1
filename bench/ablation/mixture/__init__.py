"""A Gaussian mixture in the plane: the exact score is the teacher, so what a term does is not hidden by its error."""
