"""A page for the browser in which photographs are restored."""
