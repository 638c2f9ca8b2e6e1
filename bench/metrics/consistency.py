"""LR-PSNR: how well an enlarged image, made small again, agrees with the input it was made from.

It needs neither weights nor a ground truth, and it sees what no-reference metrics cannot: detail that the input
contradicts. No test set here states the kernel it was made with (RealSR and DRealSR come from a camera, the others were
degraded at random), so every image is made small by the antialiased bicubic kernel, a = -0.5, that of MATLAB's
`imresize`. Noise and compression of the input stay in the comparison: even the ground truth has a finite value.
"""

from pathlib import Path

from bench.metrics.base import ImageScorer, MetricSpec
from bench.metrics.images import read_tensor, size_of
from bench.metrics.per_image import LUMA
from bench.metrics.quiet import guarded_pyiqa
from tsd.errors import UserError


def lr_psnr_scorer(spec: MetricSpec, device: str) -> ImageScorer:
    """A function `(sr, lr) -> dB` of paths.

    The function raises UserError if an image cannot be used, or if the sides of `sr` are not one whole multiple of
    those of `lr`.
    """
    with guarded_pyiqa():
        import pyiqa
        import torch

        psnr = pyiqa.create_metric(spec.pyiqa_name, device=torch.device(device), **spec.settings)

    def score(sr_path: Path, lr_path: Path | None = None) -> float:
        if lr_path is None:
            raise UserError(f"{spec.display} compares with the input; none was given for {sr_path}")
        sr, lr = read_tensor(sr_path).to(device), read_tensor(lr_path).to(device)
        (height, width), (small_height, small_width) = sr.shape[-2:], lr.shape[-2:]
        scale = height // small_height
        if (height, width) != (scale * small_height, scale * small_width):
            raise UserError(f"{sr_path} is {size_of(sr)}, no whole multiple of its input {lr_path}, {size_of(lr)}")
        small = torch.nn.functional.interpolate(sr, size=lr.shape[-2:], mode="bicubic", antialias=True)
        return float(psnr(small.clamp(0, 1), lr))

    return score


LR_PSNR = MetricSpec(
    name="lr-psnr",
    display="LR-PSNR",
    needs_reference=False,
    needs_input=True,
    higher_is_better=True,
    level="image",
    pyiqa_name="psnr",
    settings=LUMA,
    note="the output made small by antialiased bicubic (a = -0.5), not rounded, against the 8-bit input; no crop",
    decimals=2,
    bounds=(0.0, 80.0),
    loader=lr_psnr_scorer,
)
