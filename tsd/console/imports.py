"""What a command does not import: packages that diffusers and peft load because they are installed, not because they
are used.

diffusers imports bitsandbytes, peft (and with it transformers) and torch's compiler wherever it finds them. That is
most of the time until `tsd restore` works, and bitsandbytes prints about kernels that nobody asked for.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

QUANTIZERS = ("bitsandbytes",)
"""Needed for 8-bit optimisers alone."""
TRAINING = (*QUANTIZERS, "peft", "transformers", "datasets", "torchvision", "scipy")
"""What restoring does without: adapters are merged by `tsd.model.lora`, prompts are read from files."""
COMPILER = "torch._dynamo"


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Inside the block the packages count as not installed, unless they have been imported before.

    A None in `sys.modules` is Python's own sign for that. It is for programs, whose process is theirs: libraries that
    are first imported in the block remember what they did not find.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        yield
    finally:
        for name in absent:
            if sys.modules.get(name, False) is None:
                del sys.modules[name]


def quantizers_of(optimizer: str) -> AbstractContextManager[None]:
    """Keeps bitsandbytes out of a training, unless that is its optimiser's (`TrainConfig.optimizer`).

    peft, diffusers and accelerate import it wherever it is installed, and it prints about its kernels.
    """
    return nullcontext() if optimizer == "adamw8bit" else without(*QUANTIZERS)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the block a stand-in takes the place of torch's compiler, unless that has been imported before.

    It takes as long to import as torch and diffusers together, for marks on functions that mean something to
    `torch.compile` alone. What is imported in the block runs as before, and is not prepared for compilation.
    """
    if COMPILER in sys.modules:
        yield
        return
    stand_in: Any = ModuleType(COMPILER)
    stand_in.disable = stand_in.allow_in_graph = _unmarked
    stand_in.is_compiling = lambda: False
    stand_in.eval_frame = SimpleNamespace(OptimizedModule=_Compiled)
    sys.modules[COMPILER] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]


class _Compiled:
    """The class of a compiled module, of which there are none."""


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    """A decorator that does nothing, with or without arguments."""
    return (lambda own: own) if function is None else function
