"""OSEDiff on our own SD2 backbone."""
