"""The version of the training code: a hash that changes with what the code does, not with how it is described."""

import ast
import hashlib
from collections.abc import Sequence
from pathlib import Path

import tsd
from bench.provenance import sha256_json
from tsd.files import sha256_file

TSD_PARTS = ("algorithm", "train", "model", "data", "config.py", "seeds.py")
"""What of `tsd` decides about the result of a training."""
DIGITS = 16


def code_files(extra: Sequence[Path]) -> dict[str, str]:
    """The digest of each source file that decides about a cell, by name: tsd's training code, and `extra`.

    Python files are compared as syntax without comments, docstrings and layout; any others byte by byte.
    """
    root = Path(tsd.__file__).parent
    paths = [path for part in TSD_PARTS for path in _python_files(root / part)]
    paths += [file for path in extra for file in _python_files(Path(path))]
    return {_name(path, root.parent): _digest(path) for path in sorted(set(paths))}


def code_version(files: dict[str, str]) -> str:
    """One hash of the digests that `code_files` returns."""
    return sha256_json(files)[:DIGITS]


def without_words(source: str) -> str:
    """Python source without comments, docstrings and layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Strings under an assignment describe it; like docstrings they are statements without effect.
            body = [part for part in node.body if not _is_text(part)]
            node.body = body or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _python_files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _digest(path: Path) -> str:
    if path.suffix != ".py":
        return sha256_file(path)[:DIGITS]
    return hashlib.sha256(without_words(path.read_text(encoding="utf-8")).encode()).hexdigest()[:DIGITS]


def _name(path: Path, root: Path) -> str:
    path = path.resolve()
    return path.relative_to(root.resolve()).as_posix() if path.is_relative_to(root.resolve()) else path.name
