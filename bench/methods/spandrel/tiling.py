"""A network applied tile by tile. Only geometry, no network."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def in_tiles(
    network: Callable[["Tensor"], "Tensor"],
    image: "Tensor",
    *,
    scale: int,
    core: int,
    context: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> "Tensor":
    """The result of `network` for `image`, made of tiles of `core` x `core` input pixels.

    A tile is computed together with `context` pixels beyond each of its edges (less at the image's own), and only its
    core is kept. So the result is that of the whole image if no output depends on anything further away.

    Args:
        network: (B, C, h, w) -> (B, C, scale h, scale w) for any h and w.
        progress: called with (tiles done, tiles in all), with 0 done before the first.
    """
    height, width = image.shape[-2:]
    output = image.new_zeros(*image.shape[:2], scale * height, scale * width)
    corners = [(top, left) for top in range(0, height, core) for left in range(0, width, core)]
    progress(0, len(corners))
    for done, (top, left) in enumerate(corners, start=1):
        bottom, right = min(top + core, height), min(left + core, width)
        above, before = max(top - context, 0), max(left - context, 0)
        tile = network(image[..., above : bottom + context, before : right + context])
        output[..., top * scale : bottom * scale, left * scale : right * scale] = tile[
            ..., (top - above) * scale : (bottom - above) * scale, (left - before) * scale : (right - before) * scale
        ]
        progress(done, len(corners))
    return output
