"""On a CPU: 3x3 convolutions of many channels by Winograd's F(4x4, 3x3), with a quarter of the products, in fp32.

Sixteen outputs need 36 products of each pair of channels instead of 144 (Lavin and Gray, Fast Algorithms for
Convolutional Neural Networks, 2016, with the points 0, ±1, ±2 and infinity). The products are matrix products, which
MKL computes at its full rate. Sums of fp32 come out some ten times less exact than of the plain form in fp32, and far
more exact than of bf16. Tiles are computed row by row, so that whatever lies between fits into the cache.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tsd.fast.attention import takes_fp32

LEAST_CHANNELS = 128
"""Fewer inputs or outputs leave too few products to pay for the transforms."""
LEAST_PIXELS = 1024
"""Fewer outputs do not pay for the transform of the kernel."""
STRIP_VALUES = 2**15
"""Tiles x channels computed at a time: about 5 MB of fp32 with all that is derived from them."""

TILE, PATCH = 4, 6
"""Sides, in pixels, of what is computed at once and of what it is computed from."""

_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
"""The paper's B^T, G and A^T along one side of a tile."""


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` of 3x3 whose images (B, C, H, W) → (B, C', H, W) are convolved in fp32 where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        if not pays(input, self.weight):
            return super().forward(input)
        return convolve(input, self.weight, self.bias)


def use_winograd(module: nn.Module) -> bool:
    """Replaces every 3x3 convolution of many channels inside `module`; parameters are shared, not copied.

    Returns:
        Whether that is of use: there are such layers, and device and precision are those that gain.
    """
    like = next(module.parameters())
    if not _gains(like):
        return False
    found = False
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Conv2d and _fits(child):
                with torch.device("meta"):
                    replacement = WinogradConv2d(child.in_channels, child.out_channels, 3, padding=1)
                replacement.weight, replacement.bias = child.weight, child.bias
                replacement.train(child.training)
                setattr(parent, name, replacement)
                found = True
    return found


def pays(images: Tensor, weight: Tensor) -> bool:
    """Whether images (B, C, H, W) are convolved faster by `convolve` than by PyTorch."""
    return (
        _gains(images)
        and images.shape[-2] * images.shape[-1] >= LEAST_PIXELS
        and not (torch.is_grad_enabled() and (images.requires_grad or weight.requires_grad))
    )


def convolve(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of images (B, C, H, W) with a border of zeros, computed in fp32 and rounded once.

    Args:
        weight, bias: (C', C, 3, 3) and (C',).

    Returns:
        (B, C', H, W), channels last, in the images' dtype.
    """
    (outputs, channels), (height, width) = weight.shape[:2], images.shape[-2:]
    to_patch, from_products = _both_sides(_INPUT), _both_sides(_OUTPUT)
    # At every call: kept, the kernels would take eight times the memory of the weights in bf16.
    kernel = _both_sides(_KERNEL) @ weight.permute(2, 3, 0, 1).reshape(9, -1).float()
    kernel = kernel.view(-1, outputs, channels).transpose(1, 2)
    offset = torch.zeros(outputs) if bias is None else bias.float()
    down, across = -(-height // TILE), -(-width // TILE)
    rows = max(1, STRIP_VALUES // (across * channels))
    result = images.new_empty(len(images), height, width, outputs)
    for image, out in zip(images.permute(0, 2, 3, 1), result, strict=True):
        for first in range(0, down, rows):
            count = min(rows, down - first)
            strip = _padded(image, first * TILE - 1, count * TILE + 2, across * TILE + 2)
            patches = strip.unfold(0, PATCH, TILE).unfold(1, PATCH, TILE).permute(3, 4, 0, 1, 2)
            patches = to_patch @ patches.reshape(PATCH**2, -1)
            products = torch.bmm(patches.view(-1, count * across, channels), kernel)
            tiles = (from_products @ products.flatten(1)).view(TILE, TILE, count, across, outputs)
            lines = (tiles + offset).permute(2, 0, 3, 1, 4).reshape(count * TILE, -1, outputs)
            place = out[first * TILE : (first + count) * TILE]
            place.copy_(lines[: len(place), :width])
    return result.permute(0, 3, 1, 2)


def _gains(like: Tensor) -> bool:
    """Whether convolutions on a tensor's device and in its precision may gain."""
    single = like.device.type == "cpu" and like.dtype == torch.float32
    return single or takes_fp32(like.device, like.dtype)


def _padded(image: Tensor, first: int, rows: int, columns: int) -> Tensor:
    """Rows of an image (H, W, C) from `first`, and columns from -1, in fp32 with zeros where there is no image."""
    padded = torch.zeros(rows, columns, image.shape[2])
    start, stop = max(first, 0), min(first + rows, image.shape[0])
    padded[start - first : stop - first, 1 : 1 + image.shape[1]] = image[start:stop]
    return padded


def _fits(child: Any) -> bool:
    return (
        child.kernel_size == (3, 3)
        and child.stride == (1, 1)
        and child.padding == (1, 1)
        and child.dilation == (1, 1)
        and child.groups == 1
        and child.padding_mode == "zeros"
        and min(child.in_channels, child.out_channels) >= LEAST_CHANNELS
    )


def _both_sides(rows: Sequence[Sequence[float]]) -> Tensor:
    """The transform of both sides of a tile at once, of tiles whose pixels lie in one column."""
    matrix = torch.tensor(rows, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()
