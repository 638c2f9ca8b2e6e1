"""Converts between image files and tensors: decodes inputs, checks and rounds outputs, encodes them as PNG.

This is the only place where pixels become 8-bit. For every method they are clamped to [0, 1] and rounded once, half to
even.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from bench.options import SCALE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tsd.images import Picture

EIGHT_BIT_MODES = ("RGB", "L", "P")
"""The Pillow modes of finished images that are accepted; gray and palette become RGB."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
OVERSHOOT = 0.5
"""How far outside [0, 1] an output may reach; one beyond that must have another range (-1..1, 0..255)."""


def read_image(path: Path) -> "Tensor":
    """An image file as float32 (1, 3, h, w) in [0, 1]: upright, values as stored, without alpha.

    Raises:
        ImageError: see `tsd.images.read_picture`.
    """
    import numpy as np
    import torch

    from tsd.images import read_picture

    return torch.from_numpy(np.ascontiguousarray(read_picture(path).color)).permute(2, 0, 1)[None]


def checked_output(sr: "Tensor", height: int, width: int, scale: int = SCALE) -> "Tensor":
    """A method's output for an input of height x width, checked and clamped: (1, 3, scale h, scale w) on the CPU.

    Raises:
        ValueError: the output is not a finite image of that shape in [0, 1].
    """
    import torch

    expected = (1, 3, scale * height, scale * width)
    if not isinstance(sr, torch.Tensor) or tuple(sr.shape) != expected:
        found = tuple(sr.shape) if isinstance(sr, torch.Tensor) else type(sr).__name__
        raise ValueError(f"restore returned {found}, expected a tensor of shape {expected}")
    if not sr.is_floating_point():
        raise ValueError(f"restore returned {sr.dtype}, expected floating point in [0, 1]")
    sr = sr.detach().float().cpu()
    broken = int((~torch.isfinite(sr)).sum())
    if broken:
        raise ValueError(f"restore returned {broken} values that are NaN or infinite")
    low, high = float(sr.min()), float(sr.max())
    if low < -OVERSHOOT or high > 1 + OVERSHOOT:
        raise ValueError(f"restore returned values from {low:.3g} to {high:.3g}, expected [0, 1]")
    return sr.clamp(0, 1)


def checked_pixels(sr: "Tensor", height: int, width: int) -> "np.ndarray":
    """A method's output for an input of height x width as 8-bit pixels (4 height, 4 width, 3).

    The output is checked, clamped to [0, 1] and rounded, half to even.

    Raises:
        ValueError: see `checked_output`.
    """
    import torch

    sr = checked_output(sr, height, width)
    return (sr[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def output_fault(output: "Picture", shown: str, lr_size: tuple[int, int]) -> str:
    """What is wrong with the size or mode of a finished image; empty if nothing is.

    Args:
        output: the image that a method made outside the harness, as read.
        shown: its name in the message.
        lr_size: (width, height) of its input.
    """
    expected = (lr_size[0] * SCALE, lr_size[1] * SCALE)
    if output.size != expected:
        return f"wrong size: {shown} is {output.size[0]}x{output.size[1]}, expected {expected[0]}x{expected[1]}"
    if output.alpha is not None and output.mode in EIGHT_BIT_MODES:
        return f"wrong format: {shown} is {output.mode} with a transparent colour, expected 8-bit RGB"
    if output.mode not in EIGHT_BIT_MODES:
        return f"wrong format: {shown} is {output.mode}, expected 8-bit RGB"
    return ""


def png(pixels: "np.ndarray") -> bytes:
    """8-bit pixels (h, w, 3) as the bytes of a PNG file without metadata."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
