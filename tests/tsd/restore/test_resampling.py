import pytest
import torch
import torch.nn.functional as F

from tsd.restore.resampling import pillow_taps, plain_taps
from tsd.restore.restorer import resize

SIZES = [(37, 148), (148, 37), (40, 41), (41, 40), (30, 30), (9, 700)]


def lines(length: int) -> torch.Tensor:
    return torch.rand(3, 4, length, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("length", "size"), SIZES)
def test_plain_is_torchs_bicubic(length: int, size: int) -> None:
    image = lines(length)
    whole = F.interpolate(image[None], size=(4, size), mode="bicubic", align_corners=False)[0]
    assert torch.allclose(plain_taps(length, size).apply(image, 2, 0, size), whole, atol=2e-5)


@pytest.mark.parametrize(("length", "size"), SIZES)
def test_pillows_is_what_the_restorer_resizes_by(length: int, size: int) -> None:
    image = lines(length)
    whole = resize(image[None], (4, size))[0]
    assert torch.allclose(pillow_taps(length, size).apply(image, 2, 0, size).clamp(0, 1), whole, atol=2e-5)


@pytest.mark.parametrize("taps_of", [plain_taps, pillow_taps])
def test_a_part_needs_no_more_than_it_says(taps_of) -> None:
    image, taps = lines(50), taps_of(50, 130)
    whole = taps.apply(image, 2, 0, 130)
    for start, stop in ((0, 20), (51, 90), (129, 130)):
        first, last = taps.read(start, stop)
        assert last - first <= (stop - start) * 50 / 130 + 6
        part = taps.apply(image[..., first:last], 2, start, stop, first)
        assert torch.allclose(part, whole[..., start:stop], atol=1e-6)
