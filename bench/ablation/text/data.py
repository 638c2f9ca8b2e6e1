"""Pairs of the text domain: a line, and the line reduced fourfold until some of its letters are ambiguous.

Blur, area reduction, noise and JPEG, once each and mildly: stronger degradations (blur of 1–2.2 pixels, noise of 3–12
levels) left 4 % of the letters readable and nothing to restore. Every draw is seeded by the sample's number.
"""

import io

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import Dataset

from bench.ablation.text.glyphs import ALPHABET, MAX_GLYPHS, Line, font_hashes, render_line
from tsd.data.pairs import training_item
from tsd.model.prompt import PromptEmbeds
from tsd.seeds import generator_for, seed_for
from tsd.train.fingerprint import of_text

SCALE = 4
BLUR_SIGMA_PIXELS = (0.5, 1.2)
NOISE_LEVELS = (1.0, 4.0)
JPEG_QUALITY = (80, 95)
CAPTION_TOKENS, CAPTION_WIDTH = 6, 64


def degrade_line(image: np.ndarray, *seed: int | str) -> np.ndarray:
    """The small image, (H/4, W/4) uint8, of a line (H, W) in [0, 1]."""
    random = np.random.default_rng(seed_for(*seed))
    blurred = gaussian_filter(image.astype(np.float64), random.uniform(*BLUR_SIGMA_PIXELS), mode="nearest")
    height, width = image.shape
    small = blurred.reshape(height // SCALE, SCALE, width // SCALE, SCALE).mean(axis=(1, 3)) * 255
    small = small + random.uniform(*NOISE_LEVELS) * random.standard_normal(small.shape)
    quality = int(random.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1))
    buffer = io.BytesIO()
    Image.fromarray(np.rint(small.clip(0, 255)).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def to_images(line: Line, small: np.ndarray) -> tuple[Tensor, Tensor]:
    """(lr, hr), both (3, h, w) in [0, 1]; the gray is in all three channels and hr is rounded to 8 bits."""
    hr = np.rint(line.image * 255).astype(np.float32) / 255
    pair = (torch.from_numpy(small.astype(np.float32) / 255), torch.from_numpy(hr))
    return tuple(gray[None].expand(3, -1, -1) for gray in pair)  # pyright: ignore[reportReturnType]


class TextPairs(Dataset[dict[str, Tensor | int]]):
    """The items of `tsd.data.pairs.PairDataset`, rendered anew at every visit; for `RunSettings.data`.

    Args:
        seed: seeds the lines and their degradations.
        length: number of samples.
        split: lines of different splits are drawn independently.
        captions: items carry the string as `prompt_embeds`, (CAPTION_TOKENS, CAPTION_WIDTH).

    Attributes:
        fingerprint: of fonts, recipe, seed and split, by which a checkpoint knows its data.
    """

    def __init__(self, seed: int, length: int, *, split: str = "train", captions: bool = False) -> None:
        self.seed, self.length, self.split, self.captions = seed, length, split, captions
        recipe = (BLUR_SIGMA_PIXELS, NOISE_LEVELS, JPEG_QUALITY, font_hashes(), seed, split, captions)
        self.fingerprint = of_text(repr(recipe))

    def __len__(self) -> int:
        return self.length

    def line(self, index: int) -> Line:
        return render_line("text", self.split, self.seed, index)

    def pair(self, index: int) -> tuple[Tensor, Tensor]:
        """(lr, hr) of a sample, (3, 8, 12) and (3, 32, 48) in [0, 1]."""
        line = self.line(index)
        return to_images(line, degrade_line(line.image, "degrade", self.split, self.seed, index))

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        if not 0 <= index < self.length:
            raise IndexError(f"sample {index} of {self.length}")
        item = training_item(*self.pair(index), index)
        if self.captions:
            item["prompt_embeds"] = caption(self.line(index).glyphs)
        return item


def caption(glyphs: tuple[int, ...]) -> Tensor:
    """The string as token embeddings, (CAPTION_TOKENS, CAPTION_WIDTH): one token a glyph, then empty ones.

    A token is a fixed random vector of its glyph plus one of its place, so that the denoiser's own attention can read
    both; they are the same in every model.
    """
    table, places = _vectors("glyph", len(ALPHABET) + 1), _vectors("place", CAPTION_TOKENS)
    numbers = list(glyphs[:MAX_GLYPHS]) + [len(ALPHABET)] * (CAPTION_TOKENS - min(len(glyphs), MAX_GLYPHS))
    return table[numbers] + places


def no_caption() -> PromptEmbeds:
    """The prompt of the unconditional teacher, of the null prompt and of the student: (1, CAPTION_TOKENS, …)."""
    return PromptEmbeds(_vectors("none", CAPTION_TOKENS)[None])


def _vectors(name: str, count: int) -> Tensor:
    return torch.randn(count, CAPTION_WIDTH, generator=generator_for("text caption", name))
