"""A method that is one function in a file of the user's own: `python:FILE.py:FUNCTION`.

    def restore(lr, seed):           # the contract of bench/methods/base.py
        return sr

The file is run: it is the user's own, named on the command line. It is loaded alone, under a private module name;
modules beside it are found only where PYTHONPATH or an installed package provides them.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench.methods.base import MethodSpec
from bench.options import RunOptions
from bench.store.missing import Missing
from tsd.errors import UserError

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

        with torch.no_grad():
            return self.function(lr, seed)

    def provenance(self) -> dict[str, object]:
        return {"file": self.file_name, "sha256": self.sha256, "function": self.name}


def load_function(path: Path, name: str) -> FunctionMethod:
    """Runs the file and takes the function `name` from it.

    Raises:
        UserError: no such file, the file does not run, or it has no function of that name.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read ({error}); expected python:FILE.py:FUNCTION") from error
    sha256 = hashlib.sha256(source).hexdigest()
    module_name = f"bench_function_{sha256[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; expected python:FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their module up by name.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{path} has no function {name!r}; it defines {', '.join(sorted(names)) or 'none'}")
    return FunctionMethod(cast("Callable[..., Tensor]", function), name, path.name, sha256)


def function_spec(path: Path, function: str, name: str, display: str) -> MethodSpec:
    """The row of `python:FILE.py:FUNCTION`."""

    def load(options: RunOptions) -> FunctionMethod:
        return load_function(path, function)

    def missing(options: RunOptions) -> list[Missing]:
        if path.is_file():
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
