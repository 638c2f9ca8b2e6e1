"""Functions in files of the user's own: a method of a table, a loss of a training.

Standard library only, so that `bench` may use it anywhere.
"""

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tsd.errors import UserError

OWN_FUNCTION = "python:FILE.py:FUNCTION"
"""The form in which a function in a file of the user's own is named."""


def function_named(text: str) -> tuple[Path, str] | None:
    """The file and the function that a text of this form names; None for any other text."""
    kind, _, argument = text.partition(":")
    file, _, function = argument.rpartition(":")
    if kind != "python" or not file or not function.isidentifier():
        return None
    return Path(file).expanduser(), function


@contextmanager
def no_exit(what: object) -> Iterator[None]:
    """Inside the block `sys.exit` is an error: code of the user's own must not end a run without a word.

    Raises:
        RuntimeError: names `what` has called it.
    """
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"{what} called sys.exit({'' if error.code is None else repr(error.code)})") from error


def require_function(path: Path, name: str, *arguments: str) -> None:
    """Refuses, without running it, a file that cannot have a function of this name and with these arguments.

    What only running it would show, such as names made by `exec`, passes.

    Raises:
        UserError: no Python, the name is nowhere in it, or its `def` does not take as many arguments.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected {OWN_FUNCTION}") from error
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no Python: {error}; expected {OWN_FUNCTION}") from error
    nodes = list(ast.walk(tree))
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes):
        return
    binding = [node for node in nodes if name in (getattr(node, key, None) for key in ("id", "name", "asname"))]
    if not binding:
        found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(found)) or 'none'}")
    first = next((node for node in tree.body if node is binding[0]), None)
    if isinstance(first, ast.FunctionDef) and not first.decorator_list and not _stored_again(binding[1:]):
        given = first.args
        most = len(given.posonlyargs) + len(given.args)
        keywords = [
            key.arg for key, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
        ]
        fits = most - len(given.defaults) <= len(arguments) and (most >= len(arguments) or given.vararg is not None)
        if not fits or keywords:
            raise UserError(
                f"{path}, line {first.lineno}: {name}({ast.unparse(given)}); expected {name}({', '.join(arguments)})"
            )


def _stored_again(nodes: list[ast.AST]) -> bool:
    """Whether one of the nodes that bear a name gives it another meaning, and does not only use it."""
    return any(not isinstance(node, ast.Name) or isinstance(node.ctx, ast.Store) for node in nodes)


def load_function(path: Path, name: str) -> tuple[Callable[..., Any], str]:
    """Runs the user's own file; returns the function `name` in it, and the file's SHA-256.

    It is loaded alone, under a private module name; modules beside it are found only where PYTHONPATH or an installed
    package provides them.

    Raises:
        UserError: no such file, the file does not run, or it has no function of that name.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error}); expected {OWN_FUNCTION}") from error
    sha256 = hashlib.sha256(source).hexdigest()
    module_name = f"own_function_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; expected {OWN_FUNCTION}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their module up by name.
    sys.modules[module_name] = module
    try:
        with no_exit(path.name):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(names)) or 'none'}")
    return function, sha256
