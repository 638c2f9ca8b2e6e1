"""The precisions that a network may compute in, by the names that the command lines use.

A module of its own, so that `bench --help` does not wait for the dataclasses of `tsd.config`.
"""

from typing import Literal, get_args

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
