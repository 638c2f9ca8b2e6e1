"""Feeds FeMaSR's network as its own test code does: mirrored beyond the right and lower edge, large images in tiles.

Read from `FeMaSRNet.test`, `test_tile` and `inference_femasr.py` (chaofengc/FeMaSR at 1ca4295). Every side is padded to
the *next* multiple of 16, a side of 128 to 144 too, and the mirror image repeats the edge itself. Group normalisation
and attention spread over the whole image, so that an image without this padding comes out slightly different
everywhere. This module has geometry only, no network.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from bench.methods.spandrel.tiling import in_tiles

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 16  # 8 // scale * 8, for x4
TILED_FROM_PIXELS = 600**2  # from here on the official script works in tiles
TILE = 240
TILE_PAD = 16


def mirrored(image: "Tensor") -> "Tensor":
    """Continues `image` (B, C, h, w) by its mirror image to the next multiple of 16, which is never its own size.

    A side of less than 8 is too short for that; the harness has none under 16.
    """
    import torch

    height, width = image.shape[-2:]
    image = torch.cat([image, image.flip(2)], 2)[:, :, : height // WINDOW * WINDOW + WINDOW]
    return torch.cat([image, image.flip(3)], 3)[:, :, :, : width // WINDOW * WINDOW + WINDOW]


def enlarge(network: Callable[["Tensor"], "Tensor"], image: "Tensor", scale: int) -> "Tensor":
    """Sends `image` (1, 3, h, w) through `network`, which enlarges by `scale`, as the official script does.

    Images of 600 x 600 pixels or more go in tiles of 240 with 16 pixels of context, each padded as a whole image.
    """
    height, width = image.shape[-2:]
    if height * width < TILED_FROM_PIXELS:
        return network(mirrored(image))[..., : scale * height, : scale * width]
    return in_tiles(lambda tile: network(mirrored(tile)), image, scale=scale, core=TILE, context=TILE_PAD)
