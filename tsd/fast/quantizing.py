"""The denoiser's matrix products in 8 bits by torchao: less memory, faster where the device multiplies so, approximate.

Weights are rounded once, per row; activations at every product, per token. Without compilation the rounding costs more
than the products save, so use it with `--compile`.
"""

import importlib
from typing import Any, Literal

import torch
from torch import nn

from tsd.errors import UserError

Quantization = Literal["int8", "fp8"]
SMALLEST_SIDE = 128
"""Linear layers with a shorter side stay as they are: there the rounding costs more than the product."""


def check_quantization(name: Quantization, device: torch.device | str) -> None:
    """Refuses before anything is loaded what this machine cannot do.

    Raises:
        UserError: torchao is missing, or the device has no such products.
    """
    try:
        importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise UserError(f"--quantize {name} needs torchao ({error}): pip install 'tsd-sr-bench[quantize]'") from error
    kind = torch.device(device).type
    needed = {"int8": (8, 0), "fp8": (8, 9)}[name]
    if kind == "cuda" and torch.cuda.get_device_capability(device) < needed:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise UserError(
            f"--quantize {name} needs a GPU of compute capability {needed[0]}.{needed[1]}; this one has {found}"
        )
    if kind != "cuda" and name == "fp8":
        raise UserError("--quantize fp8 needs a GPU (compute capability 8.9); a CPU has int8")


def quantize(denoiser: Any, name: Quantization) -> int:
    """Quantizes the large linear layers of a denoiser in place, and returns their number.

    Raises:
        UserError: no layer is large enough.
    """
    quantization: Any = importlib.import_module("torchao.quantization")
    config = {
        "int8": quantization.Int8DynamicActivationInt8WeightConfig,
        "fp8": quantization.Float8DynamicActivationFloat8WeightConfig,
    }[name]()
    chosen = {
        path
        for path, module in denoiser.named_modules()
        if type(module) is nn.Linear and min(module.in_features, module.out_features) >= SMALLEST_SIDE
    }
    if not chosen:
        raise UserError(f"--quantize {name}: no linear layer of this denoiser has sides of {SMALLEST_SIDE} or more")
    quantization.quantize_(denoiser, config, filter_fn=lambda _, path: path in chosen)
    return len(chosen)
