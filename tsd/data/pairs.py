"""Training pairs made on the fly: a random crop of a high-quality image, and its degraded version enlarged again.

Every item is a function of (seed, index) alone, where index is a running count of samples: batch size, order, number of
workers and resuming in the middle do not change it. Each image is visited once per round of n samples, in a shuffled
order that differs from round to round.
"""

import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from tsd.data.degrade import FULL, DegradationConfig, degrade, usm_sharpen
from tsd.errors import UserError
from tsd.images import READABLE, read_picture
from tsd.seeds import seed_for

SUFFIXES = frozenset(READABLE)
ImageInput = str | Path | np.ndarray
"""A folder of images with its sub-folders, an image file, or the pixels of one image, uint8 (H, W, 3)."""


class PairDataset(Dataset[dict[str, Tensor | int]]):
    """Pairs for the student: `{"hr": (3,S,S), "lr_up": (3,S,S), "index": int}`, both float32 in [-1,1].

    hr: the crop, mirrored and turned by quarter turns at random; sharpened first with `usm`, as Real-ESRGAN does.
    lr_up: its degradation, enlarged by torch's bicubic without antialiasing, as the restorer does, and clamped.
    """

    def __init__(
        self,
        sources: str | Path | Sequence[ImageInput],
        *,
        crop: int,
        seed: int,
        length: int | None = None,
        degradation: DegradationConfig = FULL,
        scale: int = 4,
        augment: bool = True,
        usm: bool = False,
        cache_bytes: int = 2 * 2**30,
    ) -> None:
        """
        sources: folders (searched with their sub-folders), image files, or uint8 arrays (H,W,3), in any mixture.
        crop: side S of the square crop, a multiple of `scale`.
        length: number of samples in all; by default one round through the images.
        cache_bytes: size of the decoded images kept in memory, per process; the others are read again each time.

        Images smaller than the crop are left out with a warning that lists them: enlarging them would teach blur.
        Raises UserError: folder or file missing, no image found, unreadable images (all are listed), none large enough.
        """
        if crop <= 0 or crop % scale:
            raise UserError(f"the crop must be a positive multiple of the scale {scale}, got {crop}")
        self.crop, self.seed, self.scale = crop, seed, scale
        self.degradation, self.augment, self.usm = degradation, augment, usm
        if isinstance(sources, str | Path):
            sources = [sources]
        self.images = _usable(_collect(sources), crop)
        self.length = len(self.images) if length is None else length
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        lr, hr = self.pair(index)
        return training_item(lr, hr, index)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(low-quality, original) of a sample at their own sizes: (3,S/scale,S/scale) and (3,S,S), in [0,1]."""
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        hr = self._crop(index)
        if self.usm:
            hr = usm_sharpen(hr)
        return degrade(hr, self.degradation, seed_for(self.seed, "degrade", index), scale=self.scale), hr

    def _crop(self, index: int) -> Tensor:
        """(3,S,S) in [0,1]."""
        image = self._pixels(shuffled_index(self.seed, index, len(self.images)))
        rng = np.random.default_rng(seed_for(self.seed, "crop", index))
        top, left = (int(rng.integers(side - self.crop + 1)) for side in image.shape[:2])
        patch = image[top : top + self.crop, left : left + self.crop]
        if self.augment:
            patch = np.rot90(patch, int(rng.integers(4)))
            patch = patch[:, ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(patch.copy()).permute(2, 0, 1).contiguous().float() / 255

    def _pixels(self, number: int) -> np.ndarray:
        source = self.images[number]
        if isinstance(source, np.ndarray):
            return source
        if number not in self._cache:
            pixels = _decode(source)
            if pixels.nbytes > self._cache_left:
                return pixels
            self._cache[number] = pixels
            self._cache_left -= pixels.nbytes
        return self._cache[number]


class CropDataset(PairDataset):
    """The high-quality images of `PairDataset`, without degrading them: `{"hr": (3,S,S), "index": int}`."""

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        hr = self._crop(index)
        return {"hr": (usm_sharpen(hr) if self.usm else hr) * 2 - 1, "index": index}


def shuffled_index(seed: int, index: int, count: int) -> int:
    """Which of `count` images sample `index` uses: each once per round, in an order that differs between rounds."""
    visit, position = divmod(index, count)
    return int(_order(seed, visit, count)[position])


@lru_cache(maxsize=4)  # for one million images a draw takes 20 ms: once a round, not once a sample
def _order(seed: int, visit: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed_for(seed, "order", visit)).permutation(count)


def training_item(lr: Tensor, hr: Tensor, index: int) -> dict[str, Tensor | int]:
    """The item of a pair (3,s,s), (3,S,S) in [0,1]: `{"hr", "lr_up", "index"}`, in [-1,1], the small one enlarged."""
    lr_up = F.interpolate(lr[None], size=hr.shape[-2:], mode="bicubic")[0].clamp(0, 1)
    return {"hr": hr * 2 - 1, "lr_up": lr_up * 2 - 1, "index": index}


def _collect(sources: Sequence[ImageInput]) -> list[Path | np.ndarray]:
    """All images, files in sorted order within each folder."""
    found: list[Path | np.ndarray] = []
    for source in sources:
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise UserError(f"expected uint8 arrays of shape (H, W, 3), got {source.dtype} {source.shape}")
            found.append(source)
            continue
        path = Path(source)
        if path.is_file():
            found.append(path)
        elif path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"no images in {path} or its sub-folders; looked for {', '.join(sorted(SUFFIXES))}")
            found.extend(inside)
        else:
            raise UserError(f"no such file or folder: {path}")
    if not found:
        raise UserError("no training images were given: pass at least one folder, file or array")
    return found


def _usable(images: list[Path | np.ndarray], crop: int) -> list[Path | np.ndarray]:
    """The images at least as large as the crop. Reads all files' headers, to report bad files at the start."""
    usable: list[Path | np.ndarray] = []
    small: list[str] = []
    unreadable: list[str] = []
    for image in tqdm(images, desc="checking images", unit="image", file=sys.stderr, delay=2, leave=False):
        if isinstance(image, np.ndarray):
            name, side = f"array {image.shape[1]}x{image.shape[0]}", min(image.shape[:2])
        else:
            try:
                with Image.open(image) as header:
                    name, side = f"{image} ({header.width}x{header.height})", min(header.size)
            except (OSError, Image.DecompressionBombError) as error:
                unreadable.append(f"{image}: {error}")
                continue
        (usable.append(image) if side >= crop else small.append(name))
    if unreadable:
        raise UserError(f"{len(unreadable)} unreadable images; repair or remove them:\n  " + "\n  ".join(unreadable))
    if not usable:
        raise UserError(f"none of the {len(images)} images holds a {crop}x{crop} crop: larger images or a smaller crop")
    if small:
        shown = "\n  ".join(small[:20]) + (f"\n  … and {len(small) - 20} more" if len(small) > 20 else "")
        warnings.warn(f"left out {len(small)} images smaller than the {crop}x{crop} crop:\n  {shown}", stacklevel=3)
    return usable


def _decode(path: Path) -> np.ndarray:
    """uint8 (H,W,3), upright; alpha is dropped, 16 bits are rounded to 8."""
    return np.rint(read_picture(path).color * 255).astype(np.uint8)
