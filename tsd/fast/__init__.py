"""Exact rewrites of a loaded student, which compute the same image in less time, and how a student is loaded so."""
