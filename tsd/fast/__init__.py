"""The same image in less time: a student rewritten while it is loaded."""
