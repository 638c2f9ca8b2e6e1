"""Tiling: where tiles lie and how their results are blended. Only geometry and weights, no model.

As in the release, tiles are square, neighbours share `overlap` positions, the last row and column are flush with the
edge, and Gaussian weights of variance 0.01 (in units of the tile's side) are normalised by their sum.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

VARIANCE = 0.01


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First positions of the tiles that cover `length`: every `tile − overlap`, the last flush with the end.

    Raises:
        ValueError: tile not in 1..length, or overlap not in 0..tile − 1 (tiles would not advance).
    """
    if not 1 <= tile <= length:
        raise ValueError(f"the tile is {tile}; expected 1 to {length}, the length to cover")
    if not 0 <= overlap < tile:
        raise ValueError(f"the overlap is {overlap}; expected 0 to {tile - 1}, less than the tile")
    stride = tile - overlap
    count = math.ceil((length - tile) / stride) + 1
    return [index * stride for index in range(count - 1)] + [length - tile]


def gaussian_weights(tile: int) -> Tensor:
    """(tile, tile) float64 blending weights, rows first.

    The centre is (tile − 1) / 2 across and tile / 2 down. The asymmetry is the release's; keeping it keeps the
    seams where its outputs have them.
    """
    position = torch.arange(tile, dtype=torch.float64)

    def bell(centre: float) -> Tensor:
        return torch.exp(-(((position - centre) / tile) ** 2) / (2 * VARIANCE)) / math.sqrt(2 * math.pi * VARIANCE)

    return torch.outer(bell(tile / 2), bell((tile - 1) / 2))


def tile_grid(height: int, width: int, tile: int, overlap: int) -> tuple[int, list[int], list[int]]:
    """The side of the tiles that `blend_tiles` lays over a latent, and their first rows and columns."""
    side = min(tile, height, width)
    overlap = min(overlap, side // 2) if overlap >= side else overlap
    return side, tile_starts(height, side, overlap), tile_starts(width, side, overlap)


def blend_tiles(
    function: Callable[[Tensor], Tensor],
    z: Tensor,
    *,
    tile: int,
    overlap: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """`function` applied tile by tile and blended: (B, C, h, w) → the same shape, in z's dtype.

    Args:
        function: (B, C, s, s) → (B, C, s, s), with s the tile's side actually used: `tile`, or the shorter side
            of z where that is less.
        z: the latent to cover with tiles; at most one tile's result is held at a time.
        tile, overlap: in positions of z. An overlap that leaves a shortened tile no room to advance is halved
            to s // 2.
        progress: called with (tiles done, tiles in all), with 0 done before the first.
    """
    height, width = z.shape[-2:]
    side, rows, columns = tile_grid(height, width, tile, overlap)
    weights = gaussian_weights(side).to(z.device, torch.float32)
    # Sums in float32 whatever the model's precision: half-precision weights vanish in the corners.
    total = torch.zeros(z.shape, dtype=torch.float32, device=z.device)
    weight_sum = torch.zeros((height, width), dtype=torch.float32, device=z.device)
    done, count = 0, len(rows) * len(columns)
    progress(done, count)
    for left in columns:
        for top in rows:
            window = (..., slice(top, top + side), slice(left, left + side))
            total[window] += function(z[window]).float() * weights
            weight_sum[window] += weights
            done += 1
            progress(done, count)
    return (total / weight_sum).to(z.dtype)
