"""The precisions that a network may compute in: their names on the command lines, and torch's types for them.

A module of its own, so that `bench --help` does not wait for the dataclasses of `tsd.config`.
"""

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def torch_dtype(name: str) -> "torch.dtype":
    """The type of torch for one of `PRECISIONS`."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
