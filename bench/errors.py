"""The one exception that means: the user can put this right."""


class UserError(ValueError):
    """Bad input. The message says what was found, what was expected and what to do; the CLI prints it alone."""


def one_line(error: BaseException) -> str:
    """Any exception as one line of at most 300 characters, with its type where it is none of ours."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
