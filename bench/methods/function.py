"""A method that is one function in a file of the user's own: `python:FILE.py:FUNCTION`.

    def restore(lr, seed):           # the contract of bench/methods/base.py
        return sr

The file is run as `tsd.files.load_function` says.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.methods.base import MethodSpec
from bench.options import RunOptions
from bench.store.missing import Missing
from tsd.files import load_function, no_exit, require_function

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FunctionMethod:
    """The function, with the file it came from and its name there as its provenance."""

    function: "Callable[..., Tensor]"
    name: str
    file_name: str
    sha256: str

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import torch

        with torch.no_grad(), no_exit(f"{self.name} in {self.file_name}"):
            return self.function(lr, seed)

    def provenance(self) -> dict[str, object]:
        return {"file": self.file_name, "sha256": self.sha256, "function": self.name}


def load_method(path: Path, name: str) -> FunctionMethod:
    """The method of a function in a file.

    Raises:
        UserError: see `tsd.files.load_function`.
    """
    function, sha256 = load_function(path, name)
    return FunctionMethod(function, name, path.name, sha256)


def function_spec(path: Path, function: str, name: str, display: str) -> MethodSpec:
    """The row of `python:FILE.py:FUNCTION`."""

    def load(options: RunOptions) -> FunctionMethod:
        return load_method(path, function)

    def missing(options: RunOptions) -> list[Missing]:
        if path.is_file():
            require_function(path, function, "lr", "seed")
            return []
        return [Missing(path.name, str(path), "your own file", None, None, display)]

    return MethodSpec(
        name=name,
        display=display,
        steps=None,
        kind="function",
        summary=f"{function} in {path.name}",
        licence="that of the file",
        load=load,
        missing=missing,
    )
