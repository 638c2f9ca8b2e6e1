import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from tsd.restore.color import adain, low_band, wavelet


def image(height: int = 40, width: int = 28, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, dtype=torch.float64)


def low_band_by_scipy(channel: np.ndarray) -> np.ndarray:
    """Five passes of the dilated binomial kernel, its zeros written out, with replicated borders."""
    binomial = np.outer([1, 2, 1], [1, 2, 1]) / 16
    for level in range(5):
        spacing = 2**level
        kernel = np.zeros((2 * spacing + 1, 2 * spacing + 1))
        kernel[::spacing, ::spacing] = binomial
        channel = convolve(channel, kernel, mode="nearest")
    return channel


def test_low_band_is_five_dilated_binomial_blurs() -> None:
    x = image(70, 50)
    expected = np.stack([low_band_by_scipy(channel.numpy()) for channel in x[0]])
    assert np.allclose(low_band(x)[0].numpy(), expected)


def test_images_smaller_than_the_widest_kernel() -> None:
    x = image(8, 9)
    expected = np.stack([low_band_by_scipy(channel.numpy()) for channel in x[0]])
    assert np.allclose(low_band(x)[0].numpy(), expected)


def test_wavelet_joins_the_fine_bands_of_one_and_the_coarse_band_of_the_other() -> None:
    restored, reference = image(), image()
    joined = wavelet(restored, reference)
    assert torch.allclose(joined, (restored - low_band(restored)) + low_band(reference))
    assert torch.allclose(wavelet(restored, restored), restored)


def test_wavelet_undoes_a_shift_of_colour() -> None:
    x = image()
    shift = torch.tensor([0.2, -0.1, 0.3], dtype=torch.float64).view(1, 3, 1, 1)
    assert torch.allclose(wavelet(x + shift, x), x)


def test_wavelet_keeps_what_is_fine() -> None:
    checkers = ((torch.arange(64)[:, None] + torch.arange(64)) % 2).double().expand(1, 3, 64, 64)
    joined = wavelet(checkers, torch.full_like(checkers, 0.25))
    assert joined.mean() == pytest.approx(0.25, abs=1e-6)
    assert joined[..., 20:40, 20:40].std() == pytest.approx(checkers.std().item(), abs=1e-3)


def test_wavelet_needs_equal_sizes() -> None:
    with pytest.raises(ValueError, match="sizes differ"):
        wavelet(image(8, 8), image(8, 9))


def test_adain_gives_every_channel_the_references_mean_and_deviation() -> None:
    restored, reference = image(40, 28), 0.3 * image(10, 7) + 0.1
    aligned = adain(restored, reference)
    for channel in range(3):
        # 1e-5 stands beside both variances, so the deviations agree to that order, not exactly
        assert np.mean(aligned[0, channel].numpy()) == pytest.approx(np.mean(reference[0, channel].numpy()))
        assert np.std(aligned[0, channel].numpy(), ddof=1) == pytest.approx(
            np.std(reference[0, channel].numpy(), ddof=1), rel=1e-3
        )


def test_adain_by_hand() -> None:
    restored, reference = image(), image(9, 9)
    x, r = restored[0, 1].numpy(), reference[0, 1].numpy()
    expected = (x - x.mean()) / np.sqrt(x.var(ddof=1) + 1e-5) * np.sqrt(r.var(ddof=1) + 1e-5) + r.mean()
    assert np.allclose(adain(restored, reference)[0, 1].numpy(), expected)


def test_adain_of_a_flat_image_is_finite() -> None:
    assert torch.allclose(adain(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.4)), torch.tensor(0.4))


@pytest.mark.parametrize("align", [wavelet, adain])
def test_every_image_of_a_batch_is_aligned_by_itself(align) -> None:
    restored, reference = image(batch=2), image(batch=2)
    both = align(restored, reference)
    for index in range(2):
        assert torch.allclose(both[index], align(restored[index : index + 1], reference[index : index + 1])[0])
