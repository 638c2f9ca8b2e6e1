"""What a batch of restorations will take, said before it begins: memory as planned, time as timed on one tile.

Where a batch is so small that timing would cost a noticeable share of it, no time is given: the first image tells.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tsd.console.stages import TILES
from tsd.restore.restorer import SMALLEST_SIDE, Restorer
from tsd.restore.tiling import tile_grid

WORTH = 16
"""A batch that is worth so many tiles is worth timing one of them."""
IN_PIECES = 2.0
"""Photographs take about twice as long in pieces, since group normalisation is measured in passes of its own."""


@dataclass(frozen=True)
class Pace:
    """Seconds for one tile of the denoiser, and for each pixel that the rest works on."""

    tile_seconds: float
    pixel_seconds: float

    def seconds(self, restorer: Restorer, width: int, height: int, *, in_pieces: bool) -> float:
        """Seconds that an input of this size will take."""
        work = restorer.processing_size(width, height)
        seconds = _tiles(restorer, work) * self.tile_seconds + math.prod(work) * self.pixel_seconds
        return seconds * IN_PIECES if in_pieces else seconds


def timed_pace(restorer: Restorer, sizes: Sequence[tuple[int, int]]) -> Pace | None:
    """Restores one tile of noise to see how long it takes, if the inputs are worth `WORTH` of them.

    Args:
        sizes: (width, height) of the inputs.

    Returns:
        None where there is less to do, where the denoiser takes images whole (its time is then no multiple of a tile's)
        and where the networks are compiled (which takes minutes for every size).
    """
    config, factor = restorer.config, restorer.backbone.vae_factor
    side = max(round(config.tile * factor / config.scale), SMALLEST_SIDE)
    work = restorer.processing_size(side, side)
    pixels = sum(math.prod(restorer.processing_size(*size)) for size in sizes)
    if config.tile == 0 or restorer.sizes is not None or pixels < WORTH * math.prod(work):
        return None
    times: dict[tuple[str, int], float] = {}

    def note(stage: str, done: int, total: int) -> None:
        if restorer.backbone.device.type == "cuda":
            torch.cuda.synchronize(restorer.backbone.device)
        times[stage, min(done, 1)] = time.perf_counter()

    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    restorer.restore_tensor(noise, 0, progress=note)
    whole = time.perf_counter() - began
    tiles = times[TILES, 1] - times[TILES, 0]
    return Pace(tiles / _tiles(restorer, work), (whole - tiles) / math.prod(work))


def _tiles(restorer: Restorer, work: tuple[int, int]) -> float:
    """How many full tiles the denoiser's work on an image is worth."""
    width, height = (length // restorer.backbone.vae_factor for length in work)
    tile = restorer.config.tile
    if restorer.tile_side(height, width) is None:
        return height * width / tile**2
    side, rows, columns = tile_grid(height, width, tile, restorer.config.tile_overlap)
    return len(rows) * len(columns) * (side / tile) ** 2
