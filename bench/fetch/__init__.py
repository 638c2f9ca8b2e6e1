"""Downloads, on request only."""
