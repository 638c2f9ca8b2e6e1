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


def native_precision(device: str) -> tuple[Precision, str]:
    """The precision that a device computes fastest in with fp32's range, and the reason in a few words.

    That is bf16 where the device multiplies it natively: GPUs since Ampere, x86 processors with AVX512-BF16 or AMX.
    fp16 is never chosen: its range is not that of fp32, and large activations may overflow.
    """
    import torch

    if device.startswith("cuda"):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # torch has no public name before 2.15
        native = any(getattr(torch.cpu, test, lambda: False)() for test in tests)
    return ("bf16", "native on this device") if native else ("fp32", "this device has no native bf16")
