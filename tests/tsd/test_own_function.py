"""Functions in files of the user's own: refused unrun where they cannot fit, and never the end of a process."""

from pathlib import Path

import pytest

from tsd.errors import UserError
from tsd.files import function_named, load_function, no_exit, require_function


def file_of(folder: Path, text: str) -> Path:
    (folder / "own.py").write_text(text)
    return folder / "own.py"


def test_a_file_and_a_function_are_named() -> None:
    assert function_named("python:a:b/own.py:run") == (Path("a:b/own.py"), "run")
    assert [function_named(text) for text in ("own.py:run", "python:own.py", "python:own.py:a-b", "")] == [None] * 4


@pytest.mark.parametrize(
    "text",
    [
        "def run(lr, seed): ...",
        "def run(lr, seed=0, *, more=1): ...",
        "def run(*arguments): ...",
        "def run(lr, seed, tile=512): ...",
        "def run(self, lr, seed): ...\nrun = run.__get__(1)",
        "from elsewhere import restore as run",
        "from elsewhere import *",
        "class run:\n    def __init__(self, lr, seed): ...",
        "import functools\n@functools.cache\ndef run(other): ...",
        "if True:\n    def run(lr): ...",
    ],
)
def test_what_may_fit_passes_unrun(tmp_path: Path, text: str) -> None:
    require_function(file_of(tmp_path, f"raise SystemExit  # never run\n{text}\n"), "run", "lr", "seed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def other(lr, seed): ...\ndef _inner(): ...", r"own\.py has no function 'run'; it defines other$"),
        ("x = 1", "it defines none"),
        ("\ndef run(lr): ...", r"own\.py, line 2: run\(lr\); expected run\(lr, seed\)"),
        ("def run(lr, seed, size): ...", r"run\(lr, seed, size\); expected run\(lr, seed\)"),
        ("def run(lr, *, seed): ...", r"run\(lr, \*, seed\); expected run\(lr, seed\)"),
        ("def run(lr, seed:", "is no Python: "),
    ],
)
def test_what_cannot_fit_is_refused_unrun(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_function(file_of(tmp_path, text), "run", "lr", "seed")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for read in (
        lambda: require_function(tmp_path / "own.py", "run"),
        lambda: load_function(tmp_path / "own.py", "run"),
    ):
        with pytest.raises(UserError, match=r"own\.py.*No such file"):
            read()


@pytest.mark.parametrize("text", ["import sys\nsys.exit(3)", "raise SystemExit(3)"])
def test_a_file_that_exits_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"failed while it was loaded: RuntimeError: own\.py called sys\.exit\(3\)"):
        load_function(file_of(tmp_path, text), "run")


def test_exit_without_a_status_is_an_error_too() -> None:
    with pytest.raises(RuntimeError, match=r"^it called sys\.exit\(\)$"), no_exit("it"):
        raise SystemExit
