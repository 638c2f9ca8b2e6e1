"""The exception for errors that the user can correct."""


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do; the CLI prints only the message."""
