"""Reads the images to be scored as 8-bit RGB, exactly as on disk, and refuses all others.

A metric must not guess: it would cut a 16-bit file to 8 bits, drop an alpha channel or convert a CMYK image with some
profile, and nobody would see it from the number.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tsd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
MODES = ("RGB", "L")


class UnusableImageError(UserError):
    """An image file that cannot be scored; the message names it and says why."""


def read_rgb8(path: Path) -> np.ndarray:
    """Reads an 8-bit image as (H, W, 3) uint8, R G B. Gray is repeated to three channels, as pyiqa does.

    Raises:
        UnusableImageError: empty, unreadable or truncated, with alpha, or not 8-bit RGB or gray.
    """
    try:
        if path.stat().st_size == 0:
            raise UnusableImageError(f"{path}: empty file")
        with Image.open(path) as image:
            # Pillow reads 16-bit RGB as mode RGB with half the depth; only the raw mode of the tiles shows it.
            deep = ";16" in repr(image.tile)
            image.load()
            if "transparency" in image.info or "A" in image.getbands() or "a" in image.getbands():
                raise UnusableImageError(f"{path}: has an alpha channel; expected 8-bit RGB without alpha")
            if deep or image.mode not in MODES:
                depth = "16-bit " if deep else ""
                raise UnusableImageError(f"{path}: {depth}image of mode {image.mode}; expected 8-bit RGB or gray")
            return np.array(image.convert("RGB"))
    except UnusableImageError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnusableImageError(f"{path}: cannot be read ({error})") from error


def read_tensor(path: Path) -> "Tensor":
    """Reads an image as (1, 3, H, W) float32 in [0, 1]: 8-bit values divided by 255, as pyiqa reads a path."""
    import torch

    return torch.from_numpy(read_rgb8(path)).permute(2, 0, 1).unsqueeze(0).float().div(255)


def size_of(image: "Tensor") -> str:
    """`512x384`, width first, of a (1, 3, H, W) tensor."""
    return f"{image.shape[-1]}x{image.shape[-2]}"
