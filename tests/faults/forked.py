"""A process forked from one that has imported everything: it starts in milliseconds. For scripts that tests run."""

import os
import sys
import traceback
from collections.abc import Callable


def forked(act: Callable[[], int]) -> int:
    """The id of a child that runs `act` and ends with its status, with that of SystemExit, or 70 after an exception."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        status = act()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def print_into(path: str) -> None:
    """Sends what this process prints, and its children, into a file."""
    output = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
