"""What a command shows while it works, and what it does not import."""
