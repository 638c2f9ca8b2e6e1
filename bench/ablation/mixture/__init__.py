"""A Gaussian mixture in the plane, whose exact score is the teacher."""
