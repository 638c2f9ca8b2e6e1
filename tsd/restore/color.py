"""Colour alignment of a restored image with its low-quality input, on float tensors without rounding.

Generative restoration drifts in colour. Two corrections are offered, as in the released script:

- `wavelet` keeps the restored image's fine bands and takes the coarsest band from the input (resized to the target).
- `adain` gives every channel the mean and standard deviation it has in the (small) input.

Both are the usual definitions: a five-level à-trous decomposition with the 3x3 binomial kernel (Wang et al., StableSR)
and adaptive instance normalisation (Huang and Belongie, 2017).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 5
EPS = 1e-5


def low_band(image: Tensor, levels: int = LEVELS) -> Tensor:
    """The coarsest band of the à-trous decomposition: a binomial blur applied with spacing 1, 2, 4, …

    Args:
        image: (B, C, H, W) float, any range; borders are replicated.
    """
    channels = image.shape[1]
    row = torch.tensor([0.25, 0.5, 0.25], dtype=image.dtype, device=image.device)
    across, down = row.view(1, 1, 1, 3).repeat(channels, 1, 1, 1), row.view(1, 1, 3, 1).repeat(channels, 1, 1, 1)
    for level in range(levels):
        radius = 2**level
        image = F.pad(image, (radius, radius, radius, radius), mode="replicate")
        image = F.conv2d(image, across, groups=channels, dilation=(1, radius))
        image = F.conv2d(image, down, groups=channels, dilation=(radius, 1))
    return image


def wavelet(restored: Tensor, reference: Tensor) -> Tensor:
    """The fine bands of `restored` on the coarsest band of `reference`; not clamped.

    Args:
        restored, reference: (B, 3, H, W) of the same size.

    The decomposition telescopes (fine bands = image − coarsest band) and is linear, so one blur of the difference
    does the work of two decompositions: (restored − low(restored)) + low(reference).
    """
    if restored.shape != reference.shape:
        raise ValueError(f"sizes differ: restored {tuple(restored.shape)}, reference {tuple(reference.shape)}")
    return restored + low_band(reference - restored)


def adain(restored: Tensor, reference: Tensor) -> Tensor:
    """`restored` with each channel's mean and standard deviation those of `reference`; not clamped.

    Args:
        restored, reference: (B, 3, H, W) in [0, 1]; sizes may differ. The variance is the unbiased one plus 1e-5.
    """
    var, mean = torch.var_mean(restored, dim=(2, 3), keepdim=True)
    var_ref, mean_ref = torch.var_mean(reference, dim=(2, 3), keepdim=True)
    return (restored - mean) * ((var_ref + EPS) / (var + EPS)).sqrt() + mean_ref
