"""Networks at their real shape with random weights: time, memory and operations do not depend on the values.

The values are ordinary all the same: activations stay finite in half precision, and none of them is denormal, which
would slow a CPU down.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BLOCK = 2**20
"""Values are drawn once and repeated: drawing two billion takes a minute."""
REMARK = "random weights: the shape is the real one, the images mean nothing"


def fill_randomly(module: "nn.Module", device: str, dtype: "torch.dtype") -> "nn.Module":
    """Gives a module on the meta device memory on `device` and random values in `dtype`; returns it.

    Matrices and kernels get values of variance 1 / fan-in, other weights 1, biases 0, tables of positions small values,
    and integers their place in the row.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, generator=generator).to(device)

    def drawn(like: "Tensor", deviation: float) -> "Tensor":
        values = torch.empty(like.shape, dtype=dtype, device=device)
        flat, scaled = values.view(-1), (block * deviation).to(dtype)
        for start in range(0, flat.numel(), BLOCK):
            flat[start : start + BLOCK] = scaled[: min(BLOCK, flat.numel() - start)]
        return values

    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None:
                continue
            if parameter.ndim > 1:
                values = drawn(parameter, parameter[0].numel() ** -0.5)
            else:
                values = torch.full(parameter.shape, float(name == "weight"), dtype=dtype, device=device)
            owner._parameters[name] = nn.Parameter(values, requires_grad=False)
        for name, buffer in owner._buffers.items():
            if buffer is None:
                continue
            if buffer.is_floating_point():
                owner._buffers[name] = drawn(buffer, 0.02)
            else:
                row = torch.arange(buffer.shape[-1] if buffer.ndim else 1, device=device, dtype=buffer.dtype)
                owner._buffers[name] = row.expand(buffer.shape).clone() if buffer.ndim else row[0]
    return module.eval()
