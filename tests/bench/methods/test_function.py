"""A function in a file of the user's own."""

import hashlib
from pathlib import Path

import pytest
import torch

from bench.methods import get_method
from bench.methods.check import check_method
from bench.methods.function import FunctionMethod
from bench.options import RunOptions
from tsd.errors import UserError

SOURCE = """
from dataclasses import dataclass

import torch


@dataclass
class Settings:
    scale: int = 4


def nearest(lr, seed):
    weight = torch.ones(1, requires_grad=True)
    return lr.repeat_interleave(Settings().scale, 2).repeat_interleave(4, 3) * weight


not_a_function = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def load(file: Path, function: str) -> FunctionMethod:
    method = get_method(f"python:{file}:{function}").load(RunOptions())
    assert isinstance(method, FunctionMethod)
    return method


def test_function_is_run_without_gradient_and_keeps_the_contract(file: Path):
    method = load(file, "nearest")
    lr = torch.rand(1, 3, 16, 18)
    sr = method.restore(lr, 0)
    assert torch.equal(sr, lr.repeat_interleave(4, 2).repeat_interleave(4, 3))
    assert not sr.requires_grad
    assert [finding for finding in check_method(method) if finding.passed is False] == []


def test_provenance_is_the_hash_of_the_file(file: Path):
    expected = {"file": "mine.py", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(), "function": "nearest"}
    assert load(file, "nearest").provenance() == expected


def test_two_functions_of_one_file_are_two_methods(file: Path):
    """Whatever they call themselves: results of one must not be continued by the other."""
    file.write_text(SOURCE + "\na = lambda lr, seed: nearest(lr, seed)\nb = lambda lr, seed: 1 - nearest(lr, seed)\n")
    assert load(file, "a").provenance() != load(file, "b").provenance()


@pytest.mark.parametrize("name", ["absent", "not_a_function"])
def test_absent_function_lists_what_there_is(file: Path, name: str):
    with pytest.raises(UserError, match=rf"no function '{name}'; it defines .*nearest"):
        load(file, name)


def test_a_file_that_fails_says_how(tmp_path: Path):
    (tmp_path / "bad.py").write_text("import there_is_no_such_module")
    with pytest.raises(UserError, match=r"bad\.py failed while it was loaded: ModuleNotFoundError"):
        load(tmp_path / "bad.py", "f")
    (tmp_path / "text.txt").write_text("f = 1")
    with pytest.raises(UserError, match="is not a Python file"):
        load(tmp_path / "text.txt", "f")
    with pytest.raises(UserError, match="could not be read"):
        load(tmp_path / "absent.py", "f")
