import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tsd.restore.tiling import blend_tiles, gaussian_weights, tile_grid, tile_starts


@pytest.mark.parametrize("length", [*range(16, 40), 100, 257])
@pytest.mark.parametrize("overlap", [0, 1, 4, 15])
def test_tiles_cover_without_gaps_and_end_flush(length: int, overlap: int) -> None:
    starts = tile_starts(length, 16, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - 16
    steps = [after - before for before, after in itertools.pairwise(starts)]
    assert all(0 < step <= 16 - overlap for step in steps)


def test_starts_by_the_releases_loop() -> None:
    for length in range(64, 400):
        count, reached = 0, 0
        while reached < length:
            reached = count * 64 - 8 * count + 64
            count += 1
        expected = [56 * index for index in range(count)]
        expected[-1] = length - 64
        assert tile_starts(length, 64, 8) == expected


@pytest.mark.parametrize(
    ("height", "width", "overlap", "expected"),
    [
        (40, 30, 20, (24, [0, 4, 8, 12, 16], [0, 4, 6])),  # more than half overlaps, as asked
        (40, 30, 24, (24, [0, 12, 16], [0, 6])),  # such tiles would not advance: half
        (10, 30, 20, (10, [0], [0, 5, 10, 15, 20])),  # the latent is smaller than a tile
    ],
)
def test_a_grid_of_tiles(height: int, width: int, overlap: int, expected: tuple[int, list[int], list[int]]) -> None:
    assert tile_grid(height, width, 24, overlap) == expected


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (17, 0), (8, 8), (8, -1)])
def test_tiles_that_cannot_advance_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        tile_starts(16, tile, overlap)


def test_weights_are_the_releases_lopsided_gaussian() -> None:
    weights = gaussian_weights(6)
    for row in range(6):
        for column in range(6):
            across = math.exp(-((column - 2.5) ** 2) / 36 / 0.02) / math.sqrt(0.02 * math.pi)
            down = math.exp(-((row - 3) ** 2) / 36 / 0.02) / math.sqrt(0.02 * math.pi)
            assert weights[row, column].item() == pytest.approx(across * down)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (40, 17), (33, 57), (5, 90), (90, 3), (1, 30)])
def test_blending_is_a_partition_of_unity(height: int, width: int) -> None:
    z = torch.randn(2, 3, height, width)
    assert torch.allclose(blend_tiles(lambda tile: tile, z, tile=16, overlap=4), z, atol=1e-6)


def test_a_pointwise_function_gives_the_untiled_result() -> None:
    z = torch.randn(1, 4, 50, 41)
    assert torch.allclose(blend_tiles(torch.sin, z, tile=16, overlap=4), torch.sin(z), atol=1e-6)


def test_away_from_seams_a_convolution_gives_the_untiled_result() -> None:
    z, kernel = torch.randn(1, 1, 64, 64), torch.randn(1, 1, 3, 3)

    def convolved(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, padding=1)

    difference = (blend_tiles(convolved, z, tile=24, overlap=4) - convolved(z)).abs()[0, 0]
    edges = {first for start in tile_starts(64, 24, 4) for first in (start, start + 23)} - {0, 63}
    inner = [index for index in range(64) if index not in edges]
    assert difference[inner][:, inner].max() < 1e-5
    assert difference.max() > 1e-3  # the seams are where the kernel reached over a tile's edge


def test_no_seam_on_a_gradient() -> None:
    """A 3x3 blur is wrong at each tile's own edge, where it sees zeros; the weights must hide that."""
    ramp = torch.linspace(0, 1, 80).expand(1, 1, 80, 80).contiguous()
    kernel = torch.full((1, 1, 3, 3), 1 / 9)
    blended = blend_tiles(lambda x: F.conv2d(x, kernel, padding=1), ramp, tile=32, overlap=8)[0, 0, 2:-2, 2:-2]
    step = blended.diff(dim=1)
    assert (step - 1 / 79).abs().max() < 1e-3
    assert blended.diff(dim=0).abs().max() < 1e-3


def test_progress_counts_every_tile() -> None:
    seen: list[tuple[int, int]] = []
    blend_tiles(lambda x: x, torch.zeros(1, 1, 20, 30), tile=16, overlap=4, progress=lambda n, of: seen.append((n, of)))
    assert seen == [(n, 6) for n in range(7)]


def test_only_tiles_of_the_given_size_reach_the_function() -> None:
    shapes: set[tuple[int, ...]] = set()
    blend_tiles(lambda x: (shapes.add(tuple(x.shape)), x)[1], torch.zeros(1, 2, 12, 40), tile=16, overlap=4)
    assert shapes == {(1, 2, 12, 12)}


def test_half_precision_is_blended_in_single() -> None:
    z = torch.randn(1, 1, 100, 100)
    blended = blend_tiles(lambda x: x, z.bfloat16(), tile=64, overlap=8)
    assert blended.dtype == torch.bfloat16
    assert torch.equal(blended, z.bfloat16())
