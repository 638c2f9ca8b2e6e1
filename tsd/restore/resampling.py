"""Bicubic resizing of a part of an image, as it would come out of resizing the whole.

Two kinds are needed: torch's plain bicubic, which enlarges the input for the network, and Pillow's, which every other
resizing of `tsd.restore` follows (`tsd.restore.restorer.resize`). Both are separable: each output position of a line is
a weighted sum of a few input positions, its taps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """From which positions of a line each position of the resized line is made.

    Attributes:
        index: (size, k) int64, positions of the line.
        weight: (size, k) float32, their weights, which sum to 1.
    """

    index: Tensor
    weight: Tensor

    def read(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 position that the positions start … stop − 1 of the resized line are made from."""
        index = self.index[start:stop]
        return int(index.min()), int(index.max()) + 1

    def apply(self, image: Tensor, dim: int, start: int, stop: int, offset: int = 0) -> Tensor:
        """Positions start … stop − 1 along `dim` of the resized image.

        Args:
            image: float, a part of the whole; position 0 along `dim` is the whole's `offset`.
        """
        index = (self.index[start:stop] - offset).to(image.device)
        weight = self.weight[start:stop].to(image.device)
        shape = [1] * image.ndim
        shape[dim] = stop - start
        parts = (
            image.index_select(dim, positions) * share.view(shape)
            for positions, share in zip(index.T, weight.T, strict=True)
        )
        total = next(parts)
        for part in parts:
            total += part
        return total


def plain_taps(length: int, size: int) -> Taps:
    """Of torch's `interpolate(mode="bicubic")`: a = −0.75, no antialiasing, the line's ends repeated."""
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * (length / size) - 0.5
    first = centre.floor().long() - 1
    index = first[:, None] + torch.arange(4)
    weight = _cubic(centre[:, None] - index, -0.75)
    return Taps(index.clamp(0, length - 1), weight.float())


def pillow_taps(length: int, size: int) -> Taps:
    """Of Pillow's BICUBIC: a = −0.5, widened where the line shrinks; taps beyond the line's ends do not count."""
    scale = max(length / size, 1.0)
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * (length / size)
    first = (centre - 2 * scale + 0.5).long().clamp(min=0)
    index = first[:, None] + torch.arange(math.ceil(4 * scale) + 1)
    last = (centre + 2 * scale + 0.5).long().clamp(max=length)
    weight = _cubic((index + 0.5 - centre[:, None]) / scale, -0.5) * (index < last[:, None])
    return Taps(index.clamp(max=length - 1), (weight / weight.sum(dim=1, keepdim=True)).float())


def _cubic(x: Tensor, a: float) -> Tensor:
    """The cubic convolution kernel (Keys, 1981)."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
