"""What a command does not import: packages that diffusers and peft load because they are installed, not because they
are used.

diffusers imports bitsandbytes, peft (and with it transformers) and torch's compiler wherever it finds them. That is
most of the time until `tsd restore` works, and bitsandbytes prints about kernels that nobody asked for.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

QUANTIZERS = ("bitsandbytes",)
"""Needed for 8-bit optimisers alone."""
TRAINING = (*QUANTIZERS, "peft", "transformers", "datasets")
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


@contextmanager
def without_compiler() -> Iterator[None]:
    """Inside the block nothing imports torch's compiler, whose marks on functions then have no effect.

    It takes as long to import as torch and diffusers together. What is imported in the block runs as before, but is not
    prepared for `torch.compile`.
    """
    if COMPILER in sys.modules:
        yield
        return
    import torch

    marked = torch.compiler.disable
    torch.compiler.disable = lambda fn=None, recursive=True, **options: (lambda own: own) if fn is None else fn  # pyright: ignore
    try:
        with without(COMPILER):
            yield
    finally:
        torch.compiler.disable = marked
