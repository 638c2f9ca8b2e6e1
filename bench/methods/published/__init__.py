"""Images that somebody else made, as a row."""
