"""Training pairs made on the fly: a random crop of a high-quality image, and its degraded version enlarged again.

Every item is a function of (seed, index) alone, where index is a running count of samples: batch size, order, number of
workers and resuming in the middle do not change it. Each image is visited once per round of n samples, in a shuffled
order that differs from round to round. An image that cannot be decoded is replaced by the next one that can, and its
item says so.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from tsd.console.progress import Progress
from tsd.data.degrade import FULL, DegradationConfig, degrade, usm_sharpen
from tsd.errors import UserError, some
from tsd.files import READABLE, find_images
from tsd.images import ImageError, read_srgb, stored_size
from tsd.seeds import seed_for

ImageInput = str | Path | np.ndarray
"""A folder of images with its sub-folders, an image file, or the pixels of one image, uint8 (H, W, 3)."""


class PairDataset(Dataset[dict[str, Tensor | int]]):
    """Pairs for the student: `{"hr": (3,S,S), "lr_up": (3,S,S), "index": int}`, both float32 in [-1,1].

    hr: the crop, mirrored and turned by quarter turns at random; sharpened first with `usm`, as Real-ESRGAN does.
    lr_up: its degradation, enlarged by torch's bicubic without antialiasing, as the restorer does, and clamped.

    Attributes:
        images: the files and arrays, in order.
        names: of each its path below its source, by which it is known on another machine.
        unreadable: the reason by name, for files that were left out at the start and those that failed since. A worker
            process knows its own; what it finds travels in the item that needed the file, as `unreadable`.
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
        exclude: Path | None = None,
    ) -> None:
        """
        sources: folders (searched with their sub-folders), image files, or uint8 arrays (H,W,3), in any mixture.
        crop: side S of the square crop, a multiple of `scale`.
        length: number of samples in all; by default one round through the images.
        cache_bytes: size of the decoded images kept in memory, per process; the others are read again each time.
        exclude: a folder below a source whose images are left out: that of the run.

        Images smaller than the crop are left out with a warning that lists them: enlarging them would teach blur. So
        are files that cannot be read.
        Raises UserError: folder or file missing, no image found, none readable or large enough.
        """
        if crop <= 0 or crop % scale:
            raise UserError(f"the crop must be a positive multiple of the scale {scale}, got {crop}")
        self.crop, self.seed, self.scale = crop, seed, scale
        self.degradation, self.augment, self.usm = degradation, augment, usm
        if isinstance(sources, str | Path):
            sources = [sources]
        self.unreadable: dict[str, str] = {}
        usable = _usable(_collect(sources, exclude), crop, self.unreadable)
        self._left_out = set(self.unreadable)
        self._listed_before: set[str] = set()
        self._news: dict[str, str] = {}
        self.names = [name for name, _ in usable]
        self.images = [image for _, image in usable]
        self.length = len(self.images) if length is None else length
        self._cache: dict[int, np.ndarray] = {}
        self._cache_left = cache_bytes

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        lr, hr = self.pair(index)
        return self._with_news(training_item(lr, hr, index))

    def _with_news(self, item: dict[str, Any]) -> dict[str, Any]:
        """Adds to an item what could not be read since the last one, if anything."""
        news, self._news = self._news, {}
        return item | ({"unreadable": news} if news else {})

    def listing(self) -> dict[str, int | None]:
        """The files that could not be read, now or before: their places among the images, None if left out at once."""
        names = self.unreadable.keys() | self._listed_before
        return {name: None if name in self._left_out else self.names.index(name) for name in sorted(names)}

    def rejoin(self, listed: Mapping[str, int | None]) -> None:
        """Takes the images as an earlier call saw them, so that the numbers of its samples mean the same images.

        Args:
            listed: by name the files that it could not read: their places among its images, or None if it had left
                them out at the start. Those may have been repaired or removed since.
        """
        for name in [name for name, place in listed.items() if place is None and name in self.names]:
            del self.images[self.names.index(name)], self.names[self.names.index(name)]
        places = {place: name for name, place in listed.items() if place is not None}
        for place, name in sorted(places.items()):
            if name not in self.names:
                self.names.insert(place, name)
                self.images.insert(place, Path(name))
                self.unreadable.setdefault(name, "gone since it could not be read")
        self._left_out = {name for name in self._left_out | listed.keys() if listed.get(name) is None}
        self._listed_before = set(listed)

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
        image = self._readable(shuffled_index(self.seed, index, len(self.images)))
        rng = np.random.default_rng(seed_for(self.seed, "crop", index))
        top, left = (int(rng.integers(side - self.crop + 1)) for side in image.shape[:2])
        patch = image[top : top + self.crop, left : left + self.crop]
        if self.augment:
            patch = np.rot90(patch, int(rng.integers(4)))
            patch = patch[:, ::-1] if rng.random() < 0.5 else patch
        return torch.from_numpy(patch.copy()).permute(2, 0, 1).contiguous().float() / 255

    def _readable(self, number: int) -> np.ndarray:
        """The pixels of an image, or of the next that can be decoded and holds a crop.

        Raises:
            UserError: not one image can be decoded.
        """
        for offset in range(len(self.images)):
            place = (number + offset) % len(self.images)
            if self.names[place] in self.unreadable:
                continue
            try:
                pixels = self._pixels(place)
                if min(pixels.shape[:2]) >= self.crop:
                    return pixels
                reason = f"{self.images[place]}: smaller than its header says"
            except ImageError as error:
                reason = str(error)
            self.unreadable[self.names[place]] = self._news[self.names[place]] = reason
        raise UserError("not one training image can be decoded:\n  " + some(self.unreadable.values(), 20))

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
        return self._with_news({"hr": (usm_sharpen(hr) if self.usm else hr) * 2 - 1, "index": index})


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


def _collect(sources: Sequence[ImageInput], exclude: Path | None) -> list[tuple[str, Path | np.ndarray]]:
    """All images with their names, files in sorted order within each folder."""
    found: list[tuple[str, Path | np.ndarray]] = []
    for number, source in enumerate(sources):
        place = f"{number}/" if len(sources) > 1 else ""
        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
                raise UserError(f"expected uint8 arrays of shape (H, W, 3), got {source.dtype} {source.shape}")
            found.append((f"{place}array", source))
            continue
        path = Path(source)
        if path.is_file():
            found.append((f"{place}{path.name}", path))
        elif path.is_dir():
            inside = find_images(path, exclude=exclude)
            if not inside.images:
                raise UserError(f"no images in {path} or its sub-folders; looked for {', '.join(READABLE)}")
            found.extend((f"{place}{image.relative_to(path).as_posix()}", image) for image in inside.images)
        else:
            raise UserError(f"no such file or folder: {path}")
    if not found:
        raise UserError("no training images were given: pass at least one folder, file or array")
    return found


def _usable(
    images: list[tuple[str, Path | np.ndarray]], crop: int, unreadable: dict[str, str]
) -> list[tuple[str, Path | np.ndarray]]:
    """The images at least as large as the crop. Reads all files' headers, and adds bad files to `unreadable`."""
    usable: list[tuple[str, Path | np.ndarray]] = []
    small: list[str] = []
    for name, image in Progress(images, desc="checking images", unit="image", delay=2, leave=False):
        if isinstance(image, np.ndarray):
            shown, side = f"array {image.shape[1]}x{image.shape[0]}", min(image.shape[:2])
        else:
            try:
                size = stored_size(image)
            except ImageError as error:
                unreadable[name] = str(error)
                continue
            shown, side = f"{image} ({size[0]}x{size[1]})", min(size)
        usable.append((name, image)) if side >= crop else small.append(shown)
    if unreadable:
        faults = list(unreadable.values())
        shown = "\n  ".join(faults[:20]) + (f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else "")
        if not usable and not small:
            raise UserError(f"not one of {len(faults)} images can be read; repair or remove them:\n  {shown}")
        warnings.warn(f"left out {len(faults)} images that cannot be read:\n  {shown}", stacklevel=3)
    if not usable:
        raise UserError(f"none of the {len(images)} images holds a {crop}x{crop} crop: larger images or a smaller crop")
    if small:
        shown = "\n  ".join(small[:20]) + (f"\n  … and {len(small) - 20} more" if len(small) > 20 else "")
        warnings.warn(f"left out {len(small)} images smaller than the {crop}x{crop} crop:\n  {shown}", stacklevel=3)
    return usable


def _decode(path: Path) -> np.ndarray:
    """uint8 (H,W,3), upright and in sRGB; alpha is dropped, 16 bits are rounded to 8."""
    return np.rint(read_srgb(path).color * 255).astype(np.uint8)
