"""From one image file to degraded crops: the work of `tsd prepare`'s worker processes.

Crops and degradations are functions of (seed, the image's name, the crop's number) alone.
"""

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from tsd.data.degrade import DegradationConfig, degrade, usm_sharpen
from tsd.data.hf import import_datasets
from tsd.data.sources import SourceImage
from tsd.images import ImageError, from_image, read_srgb
from tsd.seeds import seed_for

CropMode = Literal["random", "grid"]


@dataclass(frozen=True)
class CropConfig:
    """How crops are cut and degraded. All of it changes the result.

    Attributes:
        crop: side of the square crop in pixels.
        mode: `random` places `per_image` crops anywhere, `grid` takes every crop of a centred grid.
        usm: sharpen the image first, target and source of the degradation alike, as Real-ESRGAN does for FULL.
        scale: how many times smaller the low-quality image is.
    """

    crop: int
    mode: CropMode
    per_image: int
    degradation: DegradationConfig
    usm: bool
    scale: int
    seed: int


@dataclass(frozen=True, eq=False)
class Crop:
    """One crop of an image.

    Attributes:
        number: running number among the crops of its image.
        top, left: where it was cut, in pixels of the upright image.
        hr: (S, S, 3) uint8, the target.
        hr_file, lr_file: the target and its degradation as lossless WebP files.
    """

    number: int
    top: int
    left: int
    hr: np.ndarray
    hr_file: bytes
    lr_file: bytes


@dataclass(frozen=True, eq=False)
class CroppedImage:
    """The crops of one image, or the reason there are none (`crops` is then empty)."""

    source: SourceImage
    crops: tuple[Crop, ...] = ()
    reason: str = ""


class CropMaker(Dataset[CroppedImage]):
    """Turns a `SourceImage` into a `CroppedImage`.

    It is a "data set" indexed by images, so that torch's `DataLoader` provides the worker processes: they keep the
    order, read ahead within bounds, and end when their parent is killed.
    """

    def __init__(self, config: CropConfig) -> None:
        self.config = config

    def __getitem__(self, source: SourceImage) -> CroppedImage:  # type: ignore[override]
        """The crops of one image; for a bad image the reason, never an exception."""
        # The picture may be as large as a file; it is not sent back.
        done = dataclasses.replace(source, picture={})
        try:
            image = decode(source.picture)
        except ImageError as error:
            # The path is removed, since the record must not depend on where the images lie.
            return CroppedImage(done, reason=str(error).removeprefix(f"{source.picture}: "))
        height, width = image.shape[:2]
        side = self.config.crop
        if min(height, width) < side:
            return CroppedImage(done, reason=f"{width}x{height} is smaller than the {side}x{side} crop")
        return CroppedImage(
            done, tuple(self._crop(image, source.name, *place) for place in self._places(source, image))
        )

    def _places(self, source: SourceImage, image: np.ndarray) -> list[tuple[int, int, int]]:
        """(number, top, left) of every crop."""
        side = self.config.crop
        height, width = image.shape[:2]
        if self.config.mode == "grid":
            rows, columns = (range(length % side // 2, length - side + 1, side) for length in (height, width))
            corners = [(top, left) for top in rows for left in columns]
        else:
            corners = []
            for number in range(self.config.per_image):
                rng = np.random.default_rng(seed_for(self.config.seed, "crop", source.name, number))
                corners.append((int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))))
        return [(number, *corner) for number, corner in enumerate(corners)]

    def _crop(self, image: np.ndarray, name: str, number: int, top: int, left: int) -> Crop:
        config = self.config
        patch = image[top : top + config.crop, left : left + config.crop]
        if config.usm:
            patch = to_uint8(usm_sharpen(to_tensor(patch)))
        # The crop is degraded as it is stored, so that degrading the stored target again gives the same image.
        lr = degrade(
            to_tensor(patch), config.degradation, seed_for(config.seed, "degrade", name, number), scale=config.scale
        )
        hr = np.ascontiguousarray(patch)
        return Crop(number, top, left, hr, encode_image(hr), encode_image(to_uint8(lr)))


def decode(picture: Path | Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8, upright and in sRGB; alpha is dropped, 16 bits are rounded to 8.

    Raises:
        ImageError: the image cannot be read.
    """
    if isinstance(picture, Path):
        color = read_srgb(picture).color
    else:
        path, data = picture.get("path"), picture.get("bytes")
        if data is None and path and Path(path).is_file():
            color = read_srgb(path).color
        elif data is None and not path:
            raise ImageError("the row holds no image")
        else:
            try:
                if data is not None:
                    color = read_srgb(data).color
                else:  # a file inside an archive or on a server, which `datasets` knows how to open
                    color = from_image(import_datasets().Image().decode_example(dict(picture))).to_srgb().color
            except ImageError:
                raise
            except Exception as error:  # damaged files and failing servers raise anything
                raise ImageError(str(error) or type(error).__name__) from error
    return np.rint(color * 255).astype(np.uint8)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous().float() / 255


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] → (H, W, 3) uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def encode_image(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as a lossless WebP file: a quarter smaller than PNG and as quick to write as PNG's fastest."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=0, method=0)
    return buffer.getvalue()
