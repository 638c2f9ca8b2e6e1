"""The one exception that means: the user can put this right."""


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do; the CLI prints it alone."""
