"""The metrics that give one value per image, computed by pyiqa: eight in the settings of the paper's tables, four more.

Every scorer reads both images from disk, as 8-bit RGB without cropping, one image at a time. So a value does not depend
on the order of the images or on other images.
"""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.metrics.base import CannotScoreError, ImageScorer, MetricSpec
from bench.metrics.images import read_tensor, size_of
from bench.metrics.quiet import guarded_pyiqa
from bench.metrics.weights import (
    ALEXNET,
    CLIP_RN50,
    DISTS_HEADS,
    LPIPS_HEADS,
    MANIQA,
    MUSIQ,
    NIQE_MODEL,
    VGG16,
)
from tsd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SSIM_WINDOW = 11
SSIM_STRIP = 16
YIQ_LUMA = (0.299, 0.587, 0.114)


def pyiqa_scorer(spec: MetricSpec, device: str) -> ImageScorer:
    """The pyiqa metric of `spec` as a function of paths.

    The function raises:
        CannotScoreError: the image is too small for the metric, or the metric has no finite value for it.
        UserError: an image cannot be used, or the two differ in size.
    """
    return scorer_of(spec, pyiqa_network(spec, device))


def pyiqa_network(spec: MetricSpec, device: str) -> Callable[..., "Tensor"]:
    """The pyiqa metric itself, with the settings of `spec`."""
    with guarded_pyiqa():
        import pyiqa
        import torch

        return pyiqa.create_metric(spec.pyiqa_name, device=torch.device(device), **spec.settings)


def scorer_of(spec: MetricSpec, network: Callable[..., "Tensor"]) -> ImageScorer:
    """Wraps `network(sr[, hr])`, tensors (1, 3, H, W) in [0, 1] to one number, as a function of paths."""
    import torch

    def score(sr_path: Path, hr_path: Path | None = None) -> float:
        images = [read_tensor(sr_path)]
        if spec.needs_reference:
            if hr_path is None:
                raise UserError(f"{spec.display} compares with a ground truth; none was given for {sr_path}")
            images.append(read_tensor(hr_path))
            if images[0].shape != images[1].shape:
                raise UserError(
                    f"{sr_path} is {size_of(images[0])}, {hr_path} is {size_of(images[1])}; sizes must agree"
                )
        short, long = sorted(images[0].shape[-2:])
        if short < spec.min_sides[0] or long < spec.min_sides[1]:
            raise CannotScoreError(
                f"{spec.display} needs images of at least {spec.min_sides[0]}x{spec.min_sides[1]} pixels; "
                f"{sr_path.name} is {size_of(images[0])}"
            )
        try:
            value = float(network(*images))
        except torch.linalg.LinAlgError as error:
            raise CannotScoreError(f"{spec.display} is not defined for {sr_path.name} (flat image)") from error
        if not np.isfinite(value):
            raise CannotScoreError(f"{spec.display} is not defined for {sr_path.name} (pyiqa gives {value})")
        return value

    return score


def ssim_scorer(spec: MetricSpec, device: str) -> ImageScorer:
    """Computes SSIM in horizontal strips, seven times as fast at 512x512.

    SSIM is the mean over all positions of an 11x11 window. Strips that overlap by 10 rows contain each position once,
    so the mean of pyiqa's values, weighted by rows of positions, is the same mean (to 1e-15). With the full image every
    float64 convolution unfolds into 240 MB, and most of the time is spent mapping that memory.
    """
    import torch

    network = pyiqa_network(spec, device)

    def in_strips(sr: "Tensor", hr: "Tensor") -> "Tensor":
        positions = sr.shape[-2] - (SSIM_WINDOW - 1)
        total = torch.zeros((), dtype=torch.float64)
        for top in range(0, positions, SSIM_STRIP):
            rows = min(SSIM_STRIP, positions - top)
            strip = slice(top, top + rows + SSIM_WINDOW - 1)
            total += rows * network(sr[..., strip, :], hr[..., strip, :]).squeeze().cpu()
        return total / positions

    return scorer_of(spec, in_strips)


def niqe_scorer(spec: MetricSpec, device: str) -> ImageScorer:
    """Loads NIQE with the model that lies beside this module. pyiqa reads it as a MATLAB file, here from memory.

    pyiqa is given the luma, which it takes as it is, so that an image has one value on every processor and GPU.
    """
    from scipy.io import savemat

    model = io.BytesIO()
    with np.load(NIQE_MODEL.path()) as arrays:
        savemat(model, {"mu_prisparam": arrays["mu_pris_param"], "cov_prisparam": arrays["cov_pris_param"]})
    network = pyiqa_network(replace(spec, settings={**spec.settings, "pretrained_model_path": model}), device)
    return scorer_of(spec, lambda sr: network(rounded_luma(sr)))


def rounded_luma(image: "Tensor") -> "Tensor":
    """The luma of YIQ, rounded to 8-bit levels, of an 8-bit image; the same on every machine.

    0.299 R + 0.587 G + 0.114 B of 8-bit values is halfway between two levels at one pixel in a thousand. pyiqa takes a
    matrix product in float32, and how that falls there is up to the order in which a processor's library adds: of a
    smooth 256x256 image NIQE moves by up to 0.06. Here the order is fixed, as one of those libraries has it: red first,
    each product added unrounded (a fused multiply-add) and the sum rounded to float32.

    Args:
        image: (1, 3, H, W), float32, the levels divided by 255.

    Returns:
        (1, 1, H, W), float32, whole levels divided by 255.
    """
    import torch

    luma = torch.zeros_like(image[:, :1])
    for channel, weight in enumerate(YIQ_LUMA):
        # A product of two float32 numbers is exact in float64.
        exact = image[:, channel : channel + 1].double() * torch.tensor(weight, dtype=image.dtype).double()
        luma = (luma.double() + exact).to(image.dtype)
    return (luma * 255).round() / 255


def maniqa_scorer(spec: MetricSpec, device: str) -> ImageScorer:
    with untrained_timm():
        return pyiqa_scorer(spec, device)


@contextmanager
def untrained_timm() -> Iterator[None]:
    """Makes `timm.create_model` ignore `pretrained=True`.

    pyiqa builds MANIQA on a ViT with ImageNet weights and then loads MANIQA's file strictly into the whole network,
    including the ViT. The ImageNet weights (346 MB, and a network round trip even if they are cached) have no effect.
    """
    import timm

    create = timm.create_model
    timm.create_model = lambda name, pretrained=False, **settings: create(name, pretrained=False, **settings)
    try:
        yield
    finally:
        timm.create_model = create


LUMA = {"test_y_channel": True, "color_space": "ycbcr"}

PSNR = MetricSpec(
    name="psnr",
    display="PSNR",
    needs_reference=True,
    higher_is_better=True,
    level="image",
    pyiqa_name="psnr",
    settings=LUMA,
    note="8-bit RGB, luma of BT.601 (16..235), unrounded, MSE + 1e-8, so that equal images give 80 dB; no crop",
    decimals=2,
    bounds=(0.0, 80.0),
    loader=pyiqa_scorer,
)
SSIM = MetricSpec(
    name="ssim",
    display="SSIM",
    needs_reference=True,
    higher_is_better=True,
    level="image",
    pyiqa_name="ssim",
    settings=LUMA,
    note="8-bit RGB, luma of BT.601 rounded to integers, float64, 11x11 Gaussian of sigma 1.5, valid, no crop",
    decimals=4,
    bounds=(-1.0, 1.0),
    loader=ssim_scorer,
    min_sides=(SSIM_WINDOW, SSIM_WINDOW),
)
LPIPS = MetricSpec(
    name="lpips",
    display="LPIPS",
    needs_reference=True,
    higher_is_better=False,
    level="image",
    pyiqa_name="lpips",
    note="8-bit RGB, AlexNet, version 0.1, no crop",
    decimals=4,
    loader=pyiqa_scorer,
    weights=(ALEXNET, LPIPS_HEADS),
    min_sides=(31, 31),
)
DISTS = MetricSpec(
    name="dists",
    display="DISTS",
    needs_reference=True,
    higher_is_better=False,
    level="image",
    pyiqa_name="dists",
    note="8-bit RGB, VGG-16, no resizing, no crop",
    decimals=4,
    bounds=(0.0, 1.0),
    loader=pyiqa_scorer,
    weights=(VGG16, DISTS_HEADS),
    min_sides=(8, 8),
)
NIQE = MetricSpec(
    name="niqe",
    display="NIQE",
    needs_reference=False,
    higher_is_better=False,
    level="image",
    pyiqa_name="niqe",
    note="8-bit RGB, luma of YIQ rounded to integers, float64, blocks of 96 pixels at two scales, no crop",
    decimals=4,
    loader=niqe_scorer,
    weights=(NIQE_MODEL,),
    # Two blocks, the least from which a covariance of block features can be estimated.
    min_sides=(96, 192),
)
MUSIQ_KONIQ = MetricSpec(
    name="musiq",
    display="MUSIQ",
    needs_reference=False,
    higher_is_better=True,
    level="image",
    pyiqa_name="musiq",
    note="8-bit RGB, KonIQ-10k weights, full size and longer side 384 and 224, no crop",
    decimals=2,
    bounds=(0.0, 100.0),
    loader=pyiqa_scorer,
    weights=(MUSIQ,),
)
MANIQA_PIPAL = MetricSpec(
    name="maniqa",
    display="MANIQA",
    needs_reference=False,
    higher_is_better=True,
    level="image",
    pyiqa_name="maniqa-pipal",
    note="8-bit RGB, PIPAL weights, mean of 20 evenly spaced crops of 224 pixels (random before pyiqa 0.1.12)",
    decimals=4,
    bounds=(0.0, 1.0),
    loader=maniqa_scorer,
    weights=(MANIQA,),
)
CLIPIQA = MetricSpec(
    name="clipiqa",
    display="CLIPIQA",
    needs_reference=False,
    higher_is_better=True,
    level="image",
    pyiqa_name="clipiqa",
    note="8-bit RGB, CLIP RN50, five prompt pairs, no positional embedding, no resizing",
    decimals=4,
    bounds=(0.0, 1.0),
    loader=pyiqa_scorer,
    weights=(CLIP_RN50,),
    # The CLIP package pyiqa uses imports pkg_resources, which setuptools dropped in version 82.
    modules=(
        ("pyiqa", "pip install 'tsd-sr-bench[bench]'"),
        ("pkg_resources", "pip install 'setuptools<81'"),
    ),
    min_sides=(32, 32),
)


def _full_reference(
    name: str, display: str, note: str, *, higher: bool = True, most: float = math.inf, smallest: int, **settings: Any
):
    """A further metric against the ground truth that needs no weights; in no default table."""
    return MetricSpec(
        name=name,
        display=display,
        needs_reference=True,
        higher_is_better=higher,
        level="image",
        pyiqa_name=name.replace("-", "_"),
        settings=settings,
        note=note,
        decimals=4,
        bounds=(0.0, most),
        loader=pyiqa_scorer,
        min_sides=(smallest, smallest),
    )


MS_SSIM = _full_reference(
    "ms-ssim", "MS-SSIM", "8-bit RGB, luma of BT.601, five scales of an 11x11 Gaussian, no crop",
    most=1.0, smallest=176, **LUMA,
)  # fmt: skip
GMSD = _full_reference(
    "gmsd", "GMSD", "8-bit RGB, luma of YIQ, Prewitt gradients at half size, no crop", higher=False, smallest=8
)
FSIM = _full_reference("fsim", "FSIM", "8-bit RGB, with chroma (FSIMc), no crop", most=1.0, smallest=32)
VIF = _full_reference("vif", "VIF", "8-bit RGB, steerable pyramid of luma, no crop", smallest=64)
