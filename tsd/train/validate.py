"""Validation during training: PSNR-Y against bicubic on held-out photographs, and a strip of images to look at."""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid

from tsd.algorithm.pixel_loss import PixelLoss
from tsd.data.degrade import DegradationConfig, degrade
from tsd.errors import UserError, some
from tsd.files import READABLE, find_images
from tsd.images import ImageError, read_srgb
from tsd.model.backbone import Backbone
from tsd.model.lora import STUDENT, role
from tsd.seeds import seed_for
from tsd.train.parallel import mean


@dataclass(frozen=True)
class ValidationPair:
    """One held-out crop: `lr_up` is the degraded image resized x4 (bicubic, clamped), both (1, 3, S, S) in [-1, 1]."""

    name: str
    lr_up: Tensor
    hr: Tensor


def luma_psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB on Y = 16 + (65.481 R + 128.553 G + 24.966 B)/255 of images in [-1, 1], rounded to 8 bit first."""

    def luma(x: Tensor) -> Tensor:
        rgb = ((x.double().clamp(-1, 1) + 1) * 127.5).round()
        return (rgb * rgb.new_tensor([65.481, 128.553, 24.966]).view(3, 1, 1) / 255).sum(-3)

    mse = float(F.mse_loss(luma(a), luma(b)))
    return 10 * float(np.log10(255**2 / (mse + 1e-8)))


def load_validation(
    folder: str | Path, size: int, degradation: DegradationConfig, seed: int, crops_per_image: int = 1
) -> list[ValidationPair]:
    """Crops every photograph (at its centre, then at seeded places) and degrades each crop once with a fixed seed."""
    folder = Path(folder)
    files = find_images(folder).images if folder.is_dir() else []
    if not files:
        raise UserError(f"no images in the validation folder {folder}; expected {', '.join(READABLE)}")
    pairs, unreadable = [], []
    for path in files:
        try:
            pixels = torch.from_numpy(read_srgb(path).color).permute(2, 0, 1).contiguous()
        except ImageError as error:
            unreadable.append(str(error))
            continue
        height, width = pixels.shape[-2:]
        if min(height, width) < size:
            raise UserError(f"{path} is {width}x{height}; validation crops are {size}x{size}")
        random = np.random.default_rng(seed_for(seed, "validation crop", path.stem))
        corners = [((height - size) // 2, (width - size) // 2)] + [
            (int(random.integers(height - size + 1)), int(random.integers(width - size + 1)))
            for _ in range(crops_per_image - 1)
        ]
        for index, (top, left) in enumerate(corners):
            hr = pixels[:, top : top + size, left : left + size].contiguous()
            lr = degrade(hr, degradation, seed_for(seed, "validation", path.stem, index))
            lr_up = F.interpolate(lr[None], size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
            pairs.append(ValidationPair(f"{path.stem}-{index}", lr_up * 2 - 1, hr[None] * 2 - 1))
    if unreadable and not pairs:
        raise UserError(f"no image of the validation folder {folder} can be read:\n  " + some(unreadable, 20))
    if unreadable:
        warnings.warn("left out validation images that cannot be read:\n  " + "\n  ".join(unreadable), stacklevel=2)
    return pairs


@torch.no_grad()
def validate(
    backbone: Backbone, pairs: list[ValidationPair], accelerator: Accelerator, perceptual: PixelLoss | None = None
) -> tuple[dict[str, float], Tensor]:
    """Restores every pair with the student's active weights (posterior mean); the processes share the pairs.

    Args:
        perceptual: LPIPS, if training has loaded it; reported as `lpips`.

    Returns:
        `psnr_y`, `psnr_y_bicubic` and `gain_db`, means over the pairs in dB; and the strip of this process's first
        four pairs, uint8 (3, H, W): input, result and ground truth in each row.
    """
    sums: dict[str, float] = defaultdict(float)
    rows: list[Tensor] = []
    for pair, counts in pairs_of_process(pairs, accelerator):
        x_L, x_H = pair.lr_up.to(backbone.device), pair.hr.to(backbone.device)
        with role(backbone.vae, STUDENT), role(backbone.denoiser, STUDENT):
            x_hat = backbone.decode(backbone.one_step(backbone.encode(x_L, posterior="mode"))).clamp(-1, 1)
        sums["count"] += counts
        sums["psnr_y"] += counts * luma_psnr(x_hat, x_H)
        sums["psnr_y_bicubic"] += counts * luma_psnr(x_L, x_H)
        if perceptual is not None:
            sums["lpips"] += counts * float(perceptual(x_hat, x_H))
        if len(rows) < 12:
            rows += [x_L[0], x_hat[0].float(), x_H[0]]
    totals = mean(accelerator, sums)
    numbers = {name: value / totals["count"] for name, value in totals.items() if name != "count"}
    return numbers | {"gain_db": numbers["psnr_y"] - numbers["psnr_y_bicubic"]}, image_strip(rows)


def in_words(numbers: dict[str, float]) -> str:
    """What `validate` found: `PSNR-Y 24.10 dB, 0.52 dB above bicubic's 23.58`."""
    gain = numbers["gain_db"]
    compared = f"{abs(gain):.2f} dB {'above' if gain >= 0 else 'BELOW'} bicubic's {numbers['psnr_y_bicubic']:.2f}"
    return f"PSNR-Y {numbers['psnr_y']:.2f} dB, {compared}"


def pairs_of_process(pairs: list[ValidationPair], accelerator: Accelerator) -> Iterator[tuple[ValidationPair, bool]]:
    """Yields this process's pairs, and whether each counts.

    All processes must run a sharded model equally often, so some pairs are restored twice if they do not divide evenly.
    """
    processes = accelerator.num_processes
    for number in range(accelerator.process_index, math.ceil(len(pairs) / processes) * processes, processes):
        yield pairs[number % len(pairs)], number < len(pairs)


def image_strip(images: list[Tensor], columns: int = 3) -> Tensor:
    """Arranges images (3, S, S) in [-1, 1] as one grid, uint8 (3, H, W)."""
    stacked = torch.stack([image.float().cpu() for image in images])
    grid = make_grid(stacked, nrow=columns, value_range=(-1, 1), normalize=True)
    return (grid * 255).round().to(torch.uint8)
