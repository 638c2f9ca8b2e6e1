"""The recipes that train the two mini models from scratch."""
