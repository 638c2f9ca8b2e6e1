"""Upsampling without waste: "nearest x2, then 3x3 convolution" as four 2x2 convolutions of the small image.

After nearest upsampling a 3x3 window covers only 2x2 different pixels. The taps that read the same pixel are summed,
and each of the four phases of an output pixel (even or odd row, even or odd column) is a 2x2 convolution of its own.
The four together are one transposed convolution of stride 2 with a 4x4 kernel, which writes the phases into their
places: 4/9 of the products, no enlarged image in memory, one call of the library.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn


class FastUpsample2D(nn.Module):
    """Replaces an `Upsample2D` with a 3x3 convolution: (B, C, H, W) → (B, C', 2H, 2W).

    Attributes:
        conv: the convolution that was replaced; it still serves outputs that are not twice as large.
        taps: (C, C', 4, 4), the summed kernel.
    """

    taps: Tensor

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.conv = plain.conv
        self.register_buffer("taps", summed_taps(plain.conv.weight), persistent=False)

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        height, width = hidden_states.shape[-2:]
        if output_size is not None and tuple(output_size) != (2 * height, 2 * width):
            return self.conv(F.interpolate(hidden_states, size=output_size, mode="nearest"))
        return F.conv_transpose2d(hidden_states, self.taps, self.conv.bias, stride=2, padding=1)


def summed_taps(weight: Tensor) -> Tensor:
    """The kernel (C, C', 4, 4) of the transposed convolution for a 3x3 kernel (C', C, 3, 3).

    Sums are rounded once, from fp32 to the kernel's own precision.
    """
    kernel = weight.detach().float()
    for dim in (2, 3):
        first, middle, last = kernel.unbind(dim)
        kernel = torch.stack([last, middle + last, first + middle, first], dim)
    taps = kernel.transpose(0, 1).to(weight.dtype)
    return taps.contiguous(memory_format=torch.channels_last) if _is_channels_last(weight) else taps.contiguous()


def use_fast_upsampling(module: nn.Module) -> None:
    """Replaces every `Upsample2D` inside `module` that is a plain 3x3 convolution after nearest upsampling."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is Upsample2D and _is_nearest_then_3x3(child):
                setattr(parent, name, FastUpsample2D(child))


def _is_nearest_then_3x3(child: Any) -> bool:
    return (
        child.use_conv
        and not child.use_conv_transpose
        and child.interpolate
        and child.norm is None
        and child.name == "conv"
        and type(child.conv) is nn.Conv2d
        and child.conv.kernel_size == (3, 3)
        and child.conv.padding == (1, 1)
    )


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
