"""Reads the images to be scored as 8-bit RGB by the reader of all commands, and refuses what has no such reading.

The reader (`tsd.images`) sets pictures upright by their EXIF orientation; the values are exactly as on disk, whatever
their colour profile, as in the published protocols. A metric must not guess: it would cut a 16-bit file to 8 bits, drop
an alpha channel or convert a CMYK image with some profile, and nobody would see it from the number.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tsd.errors import UserError
from tsd.images import ImageError, Picture, read_picture

if TYPE_CHECKING:
    from torch import Tensor

MODES = ("RGB", "L")


class UnusableImageError(UserError):
    """An image file that cannot be scored; the message names it and says why."""


def read_rgb8(path: Path) -> np.ndarray:
    """Reads an 8-bit image as (H, W, 3) uint8, R G B. Gray is repeated to three channels, as pyiqa does.

    Raises:
        UnusableImageError: as `read_checked`.
    """
    return read_checked(path).to_rgb8()


def read_checked(path: Path) -> Picture:
    """Reads a picture that can be scored.

    Raises:
        UnusableImageError: empty, unreadable or truncated, with alpha, or not 8-bit RGB or gray.
    """
    try:
        picture = read_picture(path)
    except ImageError as error:
        if path.is_file() and path.stat().st_size == 0:
            raise UnusableImageError(f"{path}: empty file") from error
        reason = str(error).removeprefix(f"{path}: ")
        raise UnusableImageError(f"{path}: cannot be read ({reason})") from error
    if picture.alpha is not None:
        raise UnusableImageError(f"{path}: has an alpha channel; expected 8-bit RGB without alpha")
    if picture.mode not in MODES:
        depth = "16-bit " if ";16" in picture.mode else ""
        raise UnusableImageError(f"{path}: {depth}image of mode {picture.mode}; expected 8-bit RGB or gray")
    return picture


def plain_copy(path: Path, folder: Path) -> Path:
    """The file itself, or a PNG in `folder` of what `read_rgb8` reads, for code that would read the file otherwise.

    Raises:
        UnusableImageError: as `read_checked`.
    """
    from PIL import Image

    picture = read_checked(path)
    if picture.as_stored:
        return path
    copy = folder / f"{len(list(folder.iterdir()))}.png"
    Image.fromarray(picture.to_rgb8()).save(copy)
    return copy


def read_tensor(path: Path) -> "Tensor":
    """Reads an image as (1, 3, H, W) float32 in [0, 1]: 8-bit values divided by 255, as pyiqa reads a path."""
    import torch

    return torch.from_numpy(read_rgb8(path)).permute(2, 0, 1).unsqueeze(0).float().div(255)


def size_of(image: "Tensor") -> str:
    """`512x384`, width first, of a (1, 3, H, W) tensor."""
    return f"{image.shape[-1]}x{image.shape[-2]}"
