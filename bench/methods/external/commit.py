"""The files of one commit, read out of the git directory, and the flags that its scripts declare."""

import ast
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.methods.external.git import git

NUMBERS = {"int": int, "float": float}


class Commit:
    """The files of one commit, read from the object database."""

    def __init__(self, repository: Path, commit: str) -> None:
        self.repository, self.commit = repository, commit

    def is_there(self) -> bool:
        return git(self.repository, "cat-file", "-e", f"{self.commit}^{{commit}}").returncode == 0

    @cached_property
    def files(self) -> list[str]:
        """The names of all tracked files, with "/" as separator."""
        done = git(self.repository, "ls-tree", "-r", "--name-only", "-z", self.commit)
        return [name for name in done.stdout.split("\0") if name]

    def files_with(self, words: str, names: str) -> list[str]:
        """The files whose names match the pattern and whose text holds the words."""
        done = git(self.repository, "grep", "-l", "-z", "-F", "-e", words, self.commit, "--", names)
        return [name.removeprefix(f"{self.commit}:") for name in done.stdout.split("\0") if name]

    def text(self, file: str) -> str | None:
        """The file's text with "\\n" at the ends of lines; None where the commit has no such file."""
        done = git(self.repository, "cat-file", "blob", f"{self.commit}:{file}")
        return done.stdout if done.returncode == 0 else None

    def holds(self, path: str) -> bool:
        """Whether a file or folder of that name is tracked."""
        return git(self.repository, "cat-file", "-e", f"{self.commit}:{path.rstrip('/')}").returncode == 0

    def is_folder(self, path: str) -> bool:
        return git(self.repository, "cat-file", "-t", f"{self.commit}:{path}").stdout.strip() == "tree"


@dataclass(frozen=True)
class Declaration:
    """One `add_argument` of a parser: the line of each of its flags, and those of its keywords that are literals.

    Attributes:
        lines: by flag; a positional argument has its name.
        keywords: as `add_argument` takes them, but for the default.
        default: None where there is none, or where it is computed.
    """

    lines: Mapping[str, int]
    keywords: Mapping[str, Any]
    default: Any = None


def declarations_in(text: str | None) -> list[Declaration] | None:
    """The parser's flags in a Python file; None where there is no such file, or it is no Python."""
    try:
        tree = ast.parse(text or "")
    except SyntaxError:
        return None
    if text is None:
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [part for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            keywords = dict(filter(None, map(_keyword, node.keywords)))
            lines = {str(part.value): part.lineno for part in names}
            found.append(Declaration(lines, keywords, _default(node)))
    return found


def _keyword(keyword: ast.keyword) -> tuple[str, Any] | None:
    if keyword.arg == "type" and isinstance(keyword.value, ast.Name):
        return "type", NUMBERS.get(keyword.value.id, str)
    if keyword.arg in ("action", "nargs", "choices", "required"):
        try:
            return keyword.arg, ast.literal_eval(keyword.value)
        except ValueError:
            return None
    return None


def _default(call: ast.Call) -> Any:
    for keyword in call.keywords:
        if keyword.arg == "default":
            with contextlib.suppress(ValueError):
                return ast.literal_eval(keyword.value)
    return None
