"""Bicubic and Lanczos resizing, the two baselines without a network.

Three kinds of bicubic resizing are in use, and they differ by up to 17 levels of 255 at a pixel. PSNR-Y on
the 100 RealSR test crops: torch without antialiasing (Keys' kernel, a = -0.75) 27.152 dB; torch with antialiasing,
which is Pillow's kernel in floating point (a = -0.5), 27.114 dB; Pillow on 8-bit images, which rounds and clips
between its two passes, 27.113 dB. MATLAB's imresize has Pillow's kernel.

The row "Bicubic" is the first. It is the resize that TSD-SR, ResShift and SinSR apply to their own input, so the row
shows exactly what these networks start from; it does not round to 8 bits; and it is the stronger baseline.

"Lanczos" is Pillow's Lanczos (a = 3) on 32-bit float channels, so that, as above, the only rounding is the harness's.
On RealSR: 27.243 dB.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.methods.base import MethodSpec, nothing_missing
from bench.options import SCALE, RunOptions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bicubic:
    """`torch.nn.functional.interpolate`, bicubic, half-pixel centres, no antialiasing, clamped to [0, 1]."""

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        from torch.nn.functional import interpolate

        return interpolate(lr, scale_factor=SCALE, mode="bicubic", align_corners=False, antialias=False).clamp(0, 1)

    def provenance(self) -> dict[str, object]:
        return {"resize": "torch.nn.functional.interpolate bicubic, a=-0.75, antialias=False"}


@dataclass(frozen=True)
class Lanczos:
    """Pillow's Lanczos on float channels, clamped to [0, 1]."""

    def restore(self, lr: "Tensor", seed: int) -> "Tensor":
        import numpy as np
        import torch
        from PIL import Image

        size = (lr.shape[-1] * SCALE, lr.shape[-2] * SCALE)
        channels = [
            np.array(Image.fromarray(channel.numpy()).resize(size, Image.Resampling.LANCZOS)) for channel in lr[0]
        ]
        return torch.from_numpy(np.stack(channels)[None]).clamp(0, 1)

    def provenance(self) -> dict[str, object]:
        return {"resize": "Pillow LANCZOS (a=3) on float32 channels"}


def _bicubic(options: RunOptions) -> Bicubic:
    return Bicubic()


def _lanczos(options: RunOptions) -> Lanczos:
    return Lanczos()


BICUBIC = MethodSpec(
    name="bicubic",
    display="Bicubic",
    steps=None,
    kind="resize",
    summary="torch bicubic x4 (a=-0.75), what one-step diffusion models start from",
    licence="none needed",
    load=_bicubic,
    missing=nothing_missing,
)
LANCZOS = MethodSpec(
    name="lanczos",
    display="Lanczos",
    steps=None,
    kind="resize",
    summary="Pillow Lanczos x4 (a=3) in floating point",
    licence="none needed",
    load=_lanczos,
    missing=nothing_missing,
)
